"""The process on a device: takes orders over one stream, measures in child processes, activates what won."""
