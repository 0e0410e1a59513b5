"""Stand-in until the packer lands."""


class GivenModel: ...


def load_inputs(folder):
    return []
