"""A teacher of ours: how it is told from another one."""

from megatron_qwen3.posttrain.teachers.own_teacher import OwnTeacher, Scoring
from tests import tiny


def test_other_weights_at_a_teachers_place_are_another_teacher(tmp_path):
    def told():
        return OwnTeacher(tmp_path, 4, 1.0, Scoring()).about["teacher"]

    tiny.save(tmp_path)
    before = told()
    assert told() == before and before.startswith(str(tmp_path))
    tiny.save(tmp_path)
    assert told() != before
