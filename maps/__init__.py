"""nuPlan's maps, read once a process for whoever asks: the driving command of `pipeline`, the reward of `teachers`.

    folder (which file is a location's map) -> nuplan_map (the file's parts, each read when it is first wanted)
    roads, lanes (the graph), areas (polygons that one can search), ways (the search along the graph)

A broken map is a `SampleError` of code ``bad_map``; a missing one is an error of the class that the owner chose.
"""
