from tests.rt.test_nifti import REFUSED
def test_x():
    assert len(REFUSED) > 50
