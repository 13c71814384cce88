"""Sampling with vLLM: beside the policy, on servers of the run's own, or on servers elsewhere.

    vllm_engine     what stages call
    station         what each rank has: hosts, kept in step with the policy, that share its work
    host            what a host is: one vLLM that samples groups and takes weights
    in_process      a host inside this process
    http_host       a host behind HTTP
    server_process  the process of a server that we start
    process_guard   ends a server's processes with the run, however that ended
    launch          which arguments and environment vLLM gets
    weights         names and tensors to send, and the way by files
    collective      the ways by nccl and ipc
    plugin          vLLM's side of the way by files
    probe           the check after every transfer: log-probabilities of known sequences
    threads         calls side by side

Its settings are in `pipeline.config.vllm`. vLLM is imported by `in_process`, `plugin` and
`collective` alone, and only when they are needed.
"""
