"""Sampling with vLLM: colocated with the policy, on servers of the run, or on servers elsewhere.

    vllm_engine         the engine that stages call
    rank_sampler        one rank's side of it: keeps replicas at the policy's weights
    replica             what a replica is: one vLLM that samples groups and takes weights
    in_process_replica  a replica inside this process
    http_replica        a replica behind HTTP
    server_process      the process of a server that we start
    process_guard       ends a server's processes with the run, however the run ended
    launch              arguments and environment of vLLM
    weights             names and tensors to send, and the transfer by files
    collective          the transfers by nccl and ipc
    plugin              vLLM's side of the transfer by files
    probe               the check after every transfer: log-probabilities of fixed prompts
    concurrency         concurrent calls

Its settings are in `pipeline.config.vllm`. Only `in_process_replica`, `plugin` and `collective`
import vLLM, and only when they are needed.
"""
