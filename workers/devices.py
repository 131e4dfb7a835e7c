"""Which accelerator this process has."""


def cuda_is_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())
