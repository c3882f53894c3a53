"""What is measured: parameter spaces, tasks, models, adapters."""
