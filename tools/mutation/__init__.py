"""Would a test notice? Small changes to the modules that decide what is lost, doubled, wrong or stuck.

`python -m tools.mutation --seed N` changes the code in 300 places, one at a time, and runs the tests that reach the
changed line. `power` is the share of changes that some test notices.
"""
