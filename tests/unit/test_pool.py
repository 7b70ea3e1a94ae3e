"""Calls are handed to the pool's workers as they are done with others, in time that grows with the
calls alone."""

import pytest

from data_prep.pool import Pool, unheard


def doubled(job, number, tick):
    tick(1)
    return job * number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_call_has_its_result_and_few_wait_at_a_time(workers):
    drawn, most = 0, 0

    def calls():
        nonlocal drawn
        for number in range(50):
            drawn += 1
            yield (number,)

    results = []
    with Pool(workers, 2, __name__) as pool:
        for result in pool.run(doubled, calls(), unheard):
            results.append(result)
            most = max(most, drawn - len(results))
    assert sorted(results) == [2 * number for number in range(50)]
    assert most <= 4 * workers
