"""The room that draws: tables, figures and pages of datasets and of evaluations."""
