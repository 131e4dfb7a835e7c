"""The orchestrator decides what is done, and never touches a tensor. `workers` does it.

Orders go down, events come up, weights go sideways through the store:

    configs/x.yaml -> Experiment -> sweep -> runs            (config, experiment)
                                              |
          what is due? --------orders--> fleet: this process, or Ray actors on a cluster
               ^           (schedule)         |  slots: train, taste, score, analyse
               |                              |  merge actor: drives recipes, blends, writes soups
      state of the experiment                 |
               ^   (state)                    +--weights, predictions--> store --> next order
               |                              |                (local folder or pyarrow.fs URI)
            ledger <----------events----------+
               |  (driver)
               +--> results.json, report.html, soup/         (report)

The driver repeats one turn: append to the ledger what follows from the state, submit what is due,
append the events that came back. Every event is in the ledger before anything follows from it, and
what to do next is a pure function of the events so far. Only references to weights travel.

What follows from that:
* A killed driver is replaced by running the same command: the ledger is replayed, complete
  checkpoints that are not in it are adopted, open orders start a new attempt.
* A killed worker or node costs at most the steps since the last complete checkpoint. A checkpoint
  is complete once its manifest, written last, names the size and hash of every file. It counts once
  the ledger has its event.
* Every attempt has a number. Only what the current attempt writes is adopted.
* Failures have classes, and a table (`schedule/retry.py`) decides: retry after a pause, a smaller
  micro-batch, an older checkpoint, or give up on that run. A failed run never stops the fleet.
* On CPUs, the same configuration, seed, library versions and CPU type give the same soup, byte for
  byte: killed or not, on any fleet, with any number of slots. Torch threads (`fleet.cpus_per_run`)
  are part of that identity.
* `val` selects, `test` and `ood` only report. No recipe can name a report split.

Rooms, from the ground up; a room imports only rooms below it, and from `workers` what is free of
torch. Verbs that need more of `workers` import it late, inside functions.

    config/       the Experiment, read strictly from YAML and overrides; messages for its errors
    experiment/   what a configuration means: its runs, their lengths and identity, sync checks
    state/        what has happened so far: the state, and one reducer per kind of event
    schedule/     what is due: one pure rule per kind of order, and the failure policy
    fleet/        what carries out orders: the protocol, this process, Ray actors on a cluster
    driver/       the loop of an experiment, its ledger, its lease, its signals
    report/       the state as results, CSV files and a verdict; computes no metric
      terminal/   the same on a terminal: live table, status, event lines, final tables
      html/       the same as one HTML file: page, tables, one file per figure
    commands/     one file per verb of the command line
    cli.py        verbs and options; exit codes

No file here imports torch, timm or accelerate, not even inside a function. Ray is imported only in
`fleet/` and `commands/submit.py`. `tests/test_house.py` holds both rules and the order of rooms.
"""
