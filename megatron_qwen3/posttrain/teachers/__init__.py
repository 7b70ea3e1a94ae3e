"""Teachers of a student, in memory or stored, and how their probabilities are compared.

teacher.py                            a second model in memory
teacher_settings.py                   its settings, and whether it can teach the student
teacher_set.py                        probabilities of a set of dialogs on disk
own_teacher.py, endpoint_teacher.py   who can write them
distill.py                            soft targets as an objective
divergences.py                        of two distributions
output_matrix.py                      a teacher's last layer beside the student's
"""
