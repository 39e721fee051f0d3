"""What Triton's interpreter computes otherwise than a GPU, put right where there is none."""

import numpy as np
import torch

if not torch.cuda.is_available():
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, interpreter_builder

    def fma_of_one_rounding(self, x, y, z):
        """In float64 the product is exact; the sum rounds again, to another value in 1 of 2^29."""
        total = x.data.astype(np.float64) * y.data + z.data
        return TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)

    def rounds_twice() -> bool:
        """Triton 3.6 interprets fma as a product and a sum, where every error term is zero."""
        x = np.array([1 + 2**-12], dtype=np.float32)
        terms = (TensorHandle(term, tl.float32) for term in (x, x, -x * x))
        return interpreter_builder.create_fma(*terms).data[0] == 0

    if rounds_twice():
        InterpreterBuilder.create_fma = fma_of_one_rounding

    create_dot = InterpreterBuilder.create_dot

    def dot_of_floats(self, a, b, *rest):
        """Triton 3.6 and 3.9 interpret a product of bf16 as one of the integers with its bits."""
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        return create_dot(self, a, b, *rest)

    InterpreterBuilder.create_dot = dot_of_floats
