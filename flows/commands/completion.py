"""What a shell completes after `srpo …`; each list is imported when it is asked for."""


def presets_starting_with(text: str) -> list[str]:
    """Return the names of presets that begin so."""
    from pipeline.config.load import preset_names

    return [name for name in preset_names() if name.startswith(text)]


def tasks_starting_with(text: str) -> list[str]:
    """Return the names of shipped tasks that begin so."""
    from data.registry import task_names

    return [name for name in task_names() if name.startswith(text)]


def stages_starting_with(text: str) -> list[str]:
    """Return the names of stages that begin so."""
    from pipeline.run.step_layout import ALL_STAGES

    return [name for name in (*ALL_STAGES, "evaluate") if name.startswith(text)]


def settings_starting_with(text: str) -> list[str]:
    """Return the settings that begin so, up to their equals sign."""
    from pipeline.config.load import config_keys

    return [f"{key}=" for key in config_keys() if key.startswith(text)]
