"""The bugs that the harness found, each with what mended it and the test that keeps it mended."""

from __future__ import annotations

from dataclasses import dataclass

GROUND = "tests/pipeline/writing/test_ground.py"
POINTS = "tests/chaos/test_fault_points.py"
DRIVER = "tests/cluster/test_driver_faults.py"


@dataclass(frozen=True, slots=True)
class Bug:
    """What happened, what was done about it, and the tests (`path::name`)."""

    what: str
    mended: str
    tests: tuple[str, ...]


BUGS = (
    Bug(
        "A full, failing or read-only disk ended a run with a Python traceback, and a shard's reason said only "
        "`[Errno 28]`",
        "`Volume` turns what the system says of a write into a `StoreError` that names the file, the cause and the "
        "next step",
        (f"{POINTS}::test_a_full_disk_is_told_as_a_sentence",),
    ),
    Bug(
        "A run that ended on a disk gone read-only could not remove `.lock`, kept its descriptor, and so held the "
        "dataset against its own process's next run; the error of the lock hid the real one",
        "the lease lets go of the descriptor whatever becomes of the file",
        (f"{POINTS}::test_a_lease_on_a_disk_that_went_read_only_holds_nobody",),
    ),
    Bug(
        "A lease that was taken and could not be written down (full disk) kept its lock until the process ended",
        "the descriptor is closed before the error leaves",
        (f"{POINTS}::test_a_lease_that_cannot_be_written_holds_nobody",),
    ),
    Bug(
        "A shard writer whose second file could not be opened left the first one open, with its temp file and its "
        "hashing thread, until the garbage collector came by",
        "the constructor gives back what it opened",
        (f"{POINTS}::test_a_shard_whose_second_file_cannot_be_opened_gives_the_first_back",),
    ),
    Bug(
        "The folder of a dataset was made without an fsync of the folder above it: a power cut right after a run that "
        "had ended well could take all of it away",
        "the lease makes the root as `Volume` makes every folder, durably",
        (f"{POINTS}::test_the_root_of_a_dataset_is_durable",),
    ),
    Bug(
        "A driver that began while the workers of a killed one were still writing could end at once: it removed the "
        "folder of files under way, a new file appeared in it, and `Directory not empty` was an error",
        "the sweep goes over it again, and leaves what is begun even then to the next one",
        (f"{POINTS}::test_a_sweep_bears_the_last_breaths_of_a_killed_run",),
    ),
    Bug(
        "A worker that hung (SIGSTOP, a GPU that stopped) kept its shards for ever, and the run never ended",
        "a shard has a deadline; a worker beyond it is named, killed and replaced",
        (f"{DRIVER}::test_a_worker_that_hangs_is_replaced_and_nothing_differs",),
    ),
    Bug(
        "An image that crashes the decoder natively ended three workers one after the other; then its whole shard was "
        "given up, good samples and all, and the run ended with 1",
        "the second attempt decodes each image in a process of its own, and the one at fault is quarantined",
        (f"{DRIVER}::test_an_image_that_ends_its_decoder_costs_one_attempt_and_is_quarantined",),
    ),
    Bug(
        "A worker outlived its driver and its raylet: 650 MB, deaf to SIGINT, 40 minutes later still there",
        "the kernel ends a worker with its raylet, and the driver looks for each by its pid on every node",
        ("tests/cluster/test_ends.py::test_a_worker_ends_with_the_process_that_started_it",),
    ),
    Bug(
        "`out` was moved or unmounted while a run worked; it was made anew, and the run ended well",
        "a volume makes its root once; `dataset.json` and `column.json` are looked at before each record",
        (f"{GROUND}::test_a_folder_that_goes_ends_the_run_and_nothing_is_made_in_its_place",),
    ),
    Bug(
        "A `.lock` that somebody removed let a second driver in, and the first one's end removed the second's",
        "the claim is the file under its name: it is made again, or this run is told and ends",
        ("tests/pipeline/stores/test_lease.py::test_of_two_that_a_removed_lock_let_in_one_is_told_and_no_third_comes",),
    ),
)
