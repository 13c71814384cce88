"""Configuration: sections and their types, presets, and how a TOML file becomes them."""
