"""Forward operators of fields that obey partial differential equations."""
