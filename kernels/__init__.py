"""GPU kernels of TaDiff, and how their error is measured. Imported as `tadiff_kernels`."""
