"""Sampling with vLLM: beside the policy, on servers of the run's own, or on servers elsewhere.

    engine.py      what stages call
    station.py     what each rank has: hosts, kept in step with the policy, that share its work
    host.py        what a host is: one vLLM that samples groups and takes weights
    local.py       a host inside this process
    remote.py      a host behind HTTP
    server.py      the process of a server of ours, and its end
    guard.py       ends a server's processes with the run, however that ended
    launch.py      which arguments and environment vLLM gets
    weights.py     names and tensors to send, and files as their way
    collective.py  nccl and ipc as their way
    plugin.py      vLLM's side of the file backend
    probe.py       the check after every transfer: log-probabilities of known sequences
    threads.py     calls side by side
    settings.py    the section `vllm` of the configuration

vLLM is imported by `local`, `plugin` and `collective` alone, and only when they are needed.
"""
