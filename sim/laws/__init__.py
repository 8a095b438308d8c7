"""Laws of scale: forms, fits, diagnostics."""
