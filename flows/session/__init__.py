"""A run with its policy, engines and verifiers open: new, resumed or forked."""
