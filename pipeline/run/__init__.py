"""Run folders: what is where, who may write, forks, and the records of steps."""
