"""The loop of an ensemble on a device: all rows of a bucket, all steps and their statistics.

    runners     the runner of a request: this loop or `BatchRunner`
    buckets     how rows are cut into buckets, and which size is best
    denoiser    what a backend gives
    form        what buffers and graph depend on, and the bytes that they take
    loop        the buffers, the run of a bucket, its CUDA graph
    fit         the bucket that there is memory for
    feed        what buckets are computed from
    statistics  the way of results to the host
    runner      one request

`runners` and `buckets` can be imported without PyTorch.
"""
