"""Mathematics: which answers are the reference written otherwise, and which are another one."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.verifiers import Verifiers, check_spec, magnitude, verdict

OPEN, CLOSE = "(" * 60, ")" * 60
RIGHT = [
    ("5", rf"\boxed{{{OPEN}5{CLOSE}}}"),
    (r"(x+1)^2", rf"\boxed{{{OPEN}x+1{CLOSE}^2}}"),
    (r"(-\infty,2]", r"\boxed{x\le 2}"),
    (r"(-\infty, 2]", r"\boxed{x \leq 2}"),
    (r"(-\infty,2]", r"\boxed{2 \ge x}"),
    (r"x\le 2", r"\boxed{(-\infty,2]}"),
    (r"[2,\infty)", r"\boxed{x\geq 2}"),
    ("[0,1)", r"\boxed{0\le x<1}"),
    ("(0,1)", r"\boxed{x\in(0,1)}"),
    ("(0,1)", r"\boxed{x \in (0, 1)}"),
    (r"(-\infty,0)\cup(1,\infty)", r"\boxed{x<0 \text{ or } x>1}"),
    (r"x<0 \text{ or } x>1", r"\boxed{x>1 \text{ or } x<0}"),
    ("x>3", r"\boxed{3<x}"),
    ("(0,1)", r"\boxed{1>x>0}"),
    (r"(0,\frac{1}{2})", r"\boxed{0<x<0.5}"),
    ("(1,2)", r"\boxed{1,2}"),
    ("(1,2,3)", r"\boxed{(1, 2, 3)}"),
    ("(1,2)", r"\boxed{\left(1,\,2\right)}"),
    ("(1,2)", r"\boxed{(x,y)=(1,2)}"),
    (r"(\frac{1}{2},0.5)", r"\boxed{(0.5,\frac12)}"),
    ("(1,2)", r"\boxed{y=2, x=1}"),
    (r"(3, \frac{\pi}{2})", r"\boxed{\left( 3, \frac{\pi}{2} \right)}"),
    ("[1,2]", r"\boxed{[1,2]}"),
    ("[-1,1]", r"\boxed{-1\le y\le 1}"),
    (r"\{1,2\}", r"\boxed{x=1 \text{ or } x=2}"),
    (r"\{1,2\}", r"\boxed{x=1, x=2}"),
    ("1,2", r"\boxed{2,1}"),
    ("1,2", r"\boxed{\{2,1\}}"),
    (r"\{1,2\}", r"\boxed{1, 2}"),
    (r"\{-1,\frac{1}{2}\}", r"\boxed{0.5, -1}"),
    (r"\{5\}", r"\boxed{5}"),
    ("x=1,x=2", r"\boxed{1,2}"),
    (r"\emptyset", r"\boxed{\varnothing}"),
    (r"\emptyset", r"\boxed{\{\}}"),
    (r"1\pm\sqrt{2}", r"\boxed{1+\sqrt2, 1-\sqrt2}"),
    (r"\pm 2", r"\boxed{\pm2}"),
    ("2,-2", r"\boxed{\pm 2}"),
    (r"x=\pm 2", r"\boxed{x = 2 \text{ or } x = -2}"),
    ("(1,2),(3,4)", r"\boxed{(1,2) \text{ and } (3,4)}"),
    (r"\{(1,2),(3,4)\}", r"\boxed{(3,4),(1,2)}"),
    ("1000000", r"\boxed{1,000,000}"),
    ("1,000", r"\boxed{1000}"),
    ("1000", r"\boxed{1 000}"),
    ("12345.67", r"\boxed{12{,}345.67}"),
    ("0.5", r"\boxed{.5}"),
    ("0.5", r"\boxed{\frac{1}{2}}"),
    ("-3", r"\boxed{-3}"),
    ("-3", "\\boxed{\u22123}"),
    (r"-\frac{1}{2}", r"\boxed{\frac{-1}{2}}"),
    (r"-\frac12", r"\boxed{-0.5}"),
    ("0.00012", r"\boxed{1.2E-4}"),
    ("1.2e-4", r"\boxed{0.00012}"),
    (r"1.2\times 10^{-4}", r"\boxed{0.00012}"),
    ("3e8", r"\boxed{3\times10^8}"),
    (r"\frac{1}{3}", r"\boxed{0.\overline{3}}"),
    (r"0.\overline{3}", r"\boxed{\frac13}"),
    (r"\frac{5}{2}", r"\boxed{2\frac{1}{2}}"),
    (r"2\frac{1}{2}", r"\boxed{2.5}"),
    (r"\frac{5}{2}", r"\boxed{2 1/2}"),
    (r"25\%", r"\boxed{\frac14}"),
    (r"25\%", r"\boxed{0.25}"),
    (r"25\%", r"\boxed{25}"),
    ("12", r"\boxed{12.}"),
    ("12", r"\boxed{+12}"),
    ("0", r"\boxed{0}"),
    ("0", r"\boxed{-0}"),
    ("12", r"\boxed{012}"),
    (r"5\text{ cm}", r"\boxed{5}"),
    (r"5\text{ cm}", r"\boxed{5\text{ cm}}"),
    (r"5\text{ cm}", r"\boxed{5 cm}"),
    ("5 cm", r"\boxed{5\ \mathrm{cm}}"),
    (r"5\text{ cm}", r"\boxed{5\text{ centimeters}}"),
    (r"5\text{ cm}^2", r"\boxed{5\text{ cm}^2}"),
    (r"5\text{ cm}^2", r"\boxed{5}"),
    ("10", r"\boxed{10 \text{ apples}}"),
    ("10", r"\boxed{10\text{ km/h}}"),
    (r"45^\circ", r"\boxed{45}"),
    ("45", r"\boxed{45^{\circ}}"),
    (r"45^\circ", r"\boxed{45\text{ degrees}}"),
    (r"\$12", r"\boxed{12}"),
    ("12", r"\boxed{\$12.00}"),
    ("12", r"\boxed{$12}"),
    (r"8\text{ inches}", r"\boxed{8\text{ in}}"),
    ("A", r"\boxed{(A)}"),
    ("A", r"\boxed{\text{A}}"),
    ("A", r"\boxed{\textbf{(A)}}"),
    ("yes", r"\boxed{\text{Yes}}"),
    (r"\text{no solution}", r"\boxed{\text{No solution}}"),
    ("Monday", "The answer is Monday."),
    (r"\text{(C)}", r"\boxed{C}"),
    ("3", r"\boxed{x=3}"),
    ("y=2x+1", r"\boxed{2x+1}"),
    ("y=2x+1", r"\boxed{y=1+2x}"),
    ("2x+1", r"\boxed{f(x)=2x+1}"),
    ("3", r"\boxed{x=1+2=3}"),
    ("x+y=5", r"\boxed{y+x=5}"),
    ("x+2y-5=0", r"\boxed{x+2y=5}"),
    (r"\frac{\sqrt{3}}{3}", r"\boxed{\frac{1}{\sqrt{3}}}"),
    ("x(x+1)", r"\boxed{x^2+x}"),
    (r"\sin^2 x+\cos^2 x", r"\boxed{1}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    (r"\log_2 8", r"\boxed{3}"),
    (r"\log 100", r"\boxed{2}"),
    (r"\ln 2", r"\boxed{\log_e 2}"),
    ("5!", r"\boxed{120}"),
    (r"\frac{a}{b}", r"\boxed{a/b}"),
    ("3^{1/2}", r"\boxed{\sqrt3}"),
    ("2+3i", r"\boxed{3i+2}"),
    ("x^2", r"\boxed{x\cdot x}"),
    ("0.5x", r"\boxed{\frac{x}{2}}"),
    (r"\dfrac{1}{2}", r"\boxed{\tfrac{1}{2}}"),
    ("2^{100}", r"\boxed{2^{100}}"),
    ("10^{10^{10}}", r"\boxed{10^{10^{10}}}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\boxed{\begin{bmatrix}1&2\\3&4\end{bmatrix}}"),
    ("101_2", r"\boxed{101_{2}}"),
    ("101_2", r"\boxed{101_{\text{two}}}"),
    ("101", r"\boxed{101_2}"),
    ("1F_{16}", r"\boxed{1f_{16}}"),
    ("3:4", r"\boxed{\frac{3}{4}}"),
    ("3:4", r"\boxed{3 : 4}"),
    ("10:30", r"\boxed{10:30\text{ a.m.}}"),
    ("1:2:3", r"\boxed{2:4:6}"),
    ("5", r"\fbox{5}"),
    ("5", r"$\fbox{5}$"),
    ("5", r"\boxed{\boxed{5}}"),
    ("5", r"\boxed{\textbf{5}}"),
    ("5", r"\boxed{$5$}"),
    ("5", r"The answer is $\boxed{5}$, not $6$."),
    ("6", r"\boxed{5}, then \boxed{6}"),
    (r"\{5,6\}", r"\boxed{5}, \boxed{6}"),
    ("42", "The answer is 42."),
    ("42", "**Answer: 42**"),
    ("42", "Answer: $42$"),
    ("42", "The final answer is $42$. I hope it is correct."),
    ("42", "6 * 7 = 42"),
    ("42", r"We have $6\cdot 7 = 42$."),
    ("42", "There are 42 apples."),
    ("42", "x = 42"),
    ("1/2", "It is 1/2."),
    (r"\frac{1}{2}", r"so we get \(\frac12\)."),
    ("-7", "The result is -7"),
    ("1234", "In total 1,234 people."),
    ("3.14", "about 3.14"),
    ("x^2+1", "The answer is x^2+1."),
    ("x^2+1", "so it is $x^2+1$"),
    ("42", "He has a total of 6 * 7 = <<6*7=42>>42 eggs.\n#### 42"),
    ("10", "It is 12/60 = $<<12/60=0.2>>0.2.\nShe has 0.2 x 50 = $<<0.2*50=10>>10."),
    ("19", "There were a total of 3 + 16 = 19 hats\nin 2019 or so: 19"),
    ("42", "The answer is 42 because 6*7=42."),
    ("42", "The answer is:\n\n42"),
    ("42", "The answer is:\n$$42$$"),
    ("50", "The answer is 50%."),
    ("9", r"\boxed{3^2}"),
    ("x", r"\boxed{x}"),
    ("100,200,300", r"\boxed{100, 200, 300}"),
    ("100, 200, 300", r"\boxed{100,200,300}"),
    ("42", "He has 6*7=42 apples.\n#### 42"),
    ("42", "#### 42"),
    ("1234", "#### 1,234"),
    ("42", "So **42** it is."),
    ("42", "The answer is **42**."),
    ("42", r"Therefore, the final answer is: $\boxed{42}$."),
    ("42", "= 42"),
    ("42", "The total is $42."),
    ("42", "The total cost is $42.00."),
    ("3/4", r"The probability is $\frac{3}{4}$."),
    ("42", "Answer: 42 dollars"),
    ("42", "The answer is 42 dollars per week."),
    ("0.75", "The probability is 75%."),
    ("10", "She has 4+6 = 10 eggs left."),
    (r"\frac{1}{2}", "**Final Answer**\n\n$\\frac{1}{2}$"),
    ("x=2", "So x = 2."),
    ("2", "We find that x equals 2."),
    (r"\{1,2\}", "The solutions are x = 1 and x = 2."),
    ("(2,3)", "The point is (2, 3)."),
    ("5", "The answer is $x = 5$."),
    ("5", "I think it's 5!"),
    ("120", "5! = 120"),
    (r"2\sqrt{3}", "The answer is 2√3."),
    (r"\pi", "The answer is π."),
    ("100", "It takes 100 km."),
    ("A", "The answer is A."),
    ("A", "The correct answer is (A)."),
    ("42", "The answer is 42\n\nLet me know if you have 3 more questions!"),
    ("12", r"\boxed{12\text{ eggs}}"),
    ("12", r"\boxed{12 \text{ eggs per day}}"),
    ("12", r"\boxed{\text{12 eggs}}"),
    ("12", r"\boxed{12 eggs}"),
    ("-2", r"\boxed{- 2}"),
    ("1,2", r"\boxed{1 , 2}"),
    (r"\frac{3}{4}", r"\boxed{3/4}"),
    ("4", r"\boxed{\sqrt{16}}"),
    ("n+1", r"\boxed{1+n}"),
    ("2n", r"\boxed{n \cdot 2}"),
    (r"\text{(A)}", r"\boxed{\text{A}}"),
    ("C", r"\boxed{C) 42}"),
    (r"x \ge 2", r"\boxed{[2, \infty)}"),
    ("11.5", r"\boxed{11\frac12}"),
    ("7:30", r"\boxed{7:30\text{ PM}}"),
    (r"\$3.50", r"\boxed{\$3.5}"),
    (r"30^\circ", r"\boxed{30 \degree}"),
    (r"\langle 1,2\rangle", r"\boxed{\langle 1, 2 \rangle}"),
    (r"(-\infty,\infty)", r"\boxed{\mathbb{R}}"),
    (r"\mathbb{R}", r"\boxed{(-\infty,\infty)}"),
    (r"\mathbb{R}", r"\boxed{\mathbb R}"),
    ("(0,1)", r"\boxed{\{x \mid 0<x<1\}}"),
    ("(0,1)", r"\boxed{\{x : 0 < x < 1\}}"),
    (r"[2,\infty)", r"\boxed{\{x\in\mathbb{R} \mid x\ge 2\}}"),
    (r"\infty", r"\boxed{+\infty}"),
    (r"-\infty", r"\boxed{-\infty}"),
    ("2", r"\boxed{\sqrt[3]{8}}"),
    ("3x", r"\boxed{x\cdot 3}"),
    ("2500", r"\boxed{2.5\times10^3}"),
    ("2500", r"\boxed{2.5\cdot 10^{3}}"),
    ("|x|", r"\boxed{\sqrt{x^2}}"),
    ("|x|", r"\boxed{|x|}"),
    (r"\frac{x}{2}", r"\boxed{0.5x}"),
    ("x^{-1}", r"\boxed{\frac1x}"),
    ("e^{x+1}", r"\boxed{e\cdot e^x}"),
    (r"2\pi", r"\boxed{2\pi\text{ cm}}"),
    (r"\frac{1}{2}", r"\boxed{50\%}"),
    (r"\frac{3}{7}", r"\boxed{\dfrac{3}{7}}"),
    (r"-\frac{3}{7}", r"\boxed{\frac{-3}{7}}"),
    (r"-\frac{3}{7}", r"\boxed{\frac{3}{-7}}"),
    (r"\{0\}", r"\boxed{0}"),
    ("x^2+y^2=1", r"\boxed{y^2+x^2=1}"),
    ("x^2+y^2=1", r"\boxed{x^2+y^2-1=0}"),
    (
        r"\begin{pmatrix}\frac12&0\\0&1\end{pmatrix}",
        r"\boxed{\begin{pmatrix}0.5&0\\0&1\end{pmatrix}}",
    ),
    (r"\text{No}", r"\boxed{\text{no}}"),
    (r"\text{undefined}", r"\boxed{\text{Undefined}}"),
    (r"\text{Tuesday}", r"\boxed{Tuesday}"),
    ("4!", r"\boxed{24}"),
    (r"\lfloor 3.7\rfloor", r"\boxed{3}"),
    (r"\gcd(4,6)", r"\boxed{2}"),
    ("7", r"\boxed{007}"),
    ("0.1", r"\boxed{.10}"),
    ("3:4", r"\boxed{0.75}"),
    ("10:05", r"\boxed{10:05}"),
    ("B3_{16}", r"\boxed{B3_{16}}"),
    (r"(2,\infty)", r"\boxed{x>2}"),
    (r"(-\infty,-1)\cup(1,\infty)", r"\boxed{x<-1 \text{ or } x>1}"),
    (r"(-\infty,-1)\cup(1,\infty)", r"\boxed{|x|>1}"),
    ("[-1,1]", r"\boxed{|x|\le 1}"),
    (r"(1,\infty)", r"\boxed{(1,+\infty)}"),
    (r"(0,1]\cup[2,3)", r"\boxed{[2,3)\cup(0,1]}"),
    ("[0,1]", r"\boxed{0 \leqslant x \leqslant 1}"),
    (r"x\neq 2", r"\boxed{x \ne 2}"),
    ("2<x<3", r"\boxed{3>x>2}"),
    ("(3,4)", r"\boxed{(3.0, 4)}"),
    ("(3,4)", r"\boxed{(x, y) = (3, 4)}"),
    ("x=1,y=2", r"\boxed{(1,2)}"),
    ("a=1, b=2", r"\boxed{b=2, a=1}"),
    ("5", r"\boxed{5.}"),
    ("5", r"\boxed{5,}"),
    ("5", r"\boxed{ 5 }"),
    ("5", "\\boxed{\n5\n}"),
    ("5", r"\boxed{x = 5}"),
    ("5", r"\boxed{5=5}"),
    ("5", r"\boxed{10/2}"),
    ("5", r"\boxed{5}."),
    ("5", r"$$\boxed{5}$$"),
    ("5", r"\[\boxed{5}\]"),
    ("5", r"\(\boxed{5}\)"),
    ("5", r"\boxed{\mathbf{5}}"),
    ("5", r"\boxed{\color{red}5}"),
    ("5", r"\boxed{\underline{5}}"),
    ("5", r"\boxed 5"),
    ("5", r"\boxed{5} is wrong"),
    ("2^{31}-1", r"\boxed{2147483647}"),
    ("1000000007", r"\boxed{10^9+7}"),
    ("10^{100}", r"\boxed{10^{100}}"),
    ("10^{-10}", r"\boxed{0.0000000001}"),
    (r"\frac{1+\sqrt5}{2}", r"\boxed{\frac{\sqrt{5}+1}{2}}"),
    (r"\cos 60^\circ", r"\boxed{\frac12}"),
    (r"\tan^{-1}(1)", r"\boxed{\frac{\pi}{4}}"),
]
WRONG = [
    (r"\langle 1,2\rangle", r"\boxed{\langle 2,1\rangle}"),
    (r"\infty", r"\boxed{-\infty}"),
    (r"\frac{\pi}{4}", r"\boxed{45^\circ}"),
    (r"60^\circ", r"\boxed{\frac{\pi}{3}}"),
    (r"2\pi", r"\boxed{6.28}"),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{2}x}"),
    (r"-\frac{3}{7}", r"\boxed{\frac{3}{7}}"),
    ("1,2,3", r"\boxed{1,2}"),
    ("1,2", r"\boxed{1,2,3}"),
    ("0", r"\boxed{\emptyset}"),
    ("x^2+y^2=1", r"\boxed{x^2-y^2=1}"),
    ("y=2x+1", r"\boxed{y=2x-1}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 2 \\ 1 \end{pmatrix}}"),
    (r"\text{True}", r"\boxed{\text{False}}"),
    (r"\text{north}", r"\boxed{\text{South}}"),
    ("1.5", r"\boxed{1,5}"),
    ("12", r"\boxed{\text{twelve}}"),
    ("1:2", r"\boxed{2:1}"),
    ("10:05", r"\boxed{10:50}"),
    ("1011_2", r"\boxed{1011_{10}}"),
    ("11_8", r"\boxed{9}"),
    (r"(0,1]\cup[2,3)", r"\boxed{(0,1)\cup[2,3)}"),
    ("x<2", r"\boxed{x\le 2}"),
    ("x<2", r"\boxed{y<2}"),
    ("a=1, b=2", r"\boxed{a=2, b=1}"),
    ("2147483647", r"\boxed{2^{31}}"),
    ("10^{100}", r"\boxed{10^{101}}"),
    ("10^{-10}", r"\boxed{0}"),
    ("0.00000001", r"\boxed{0.00000002}"),
    (r"\frac{1+\sqrt5}{2}", r"\boxed{1.618}"),
    (r"\frac{1+\sqrt5}{2}", r"\boxed{\frac{1-\sqrt5}{2}}"),
    ("5", r"\boxed{5}\boxed{6}"),
    ("5", "**Answer:** 6, not 5"),
    ("5", "The answer is not 5."),
    (r"(-\infty,2]", r"\boxed{x<2}"),
    (r"[2,\infty)", r"\boxed{x>2}"),
    ("(0,1)", r"\boxed{0\le x<1}"),
    ("x>3", r"\boxed{x>4}"),
    ("(1,2)", r"\boxed{[1,2]}"),
    ("(1,2,3)", r"\boxed{(1,3,2)}"),
    ("(1,2,3)", r"\boxed{\{1,2,3\}}"),
    ("(0,1)", r"\boxed{\{0,1\}}"),
    ("(1,2)", r"\boxed{x=2,y=1}"),
    ("[1,2]", r"\boxed{(1,2)}"),
    (r"\{1,2\}", r"\boxed{\{1\}}"),
    (r"\emptyset", r"\boxed{\{0\}}"),
    (r"1\pm\sqrt{2}", r"\boxed{1+\sqrt{2}}"),
    ("(1,2),(3,4)", r"\boxed{(1,2),(4,3)}"),
    ("-3", r"\boxed{3}"),
    (r"\frac{22}{7}", r"\boxed{\pi}"),
    (r"\pi", r"\boxed{\frac{22}{7}}"),
    (r"\frac{1}{3}", r"\boxed{0.333333333333333333333}"),
    (r"\sqrt{2}", r"\boxed{1.4142135623730951}"),
    ("e", r"\boxed{2.718281828}"),
    ("2.718", r"\boxed{e}"),
    ("25", r"\boxed{0.25}"),
    ("0.25", r"\boxed{25}"),
    (r"5\text{ cm}^2", r"\boxed{5\text{ cm}^3}"),
    (r"5\text{ m/s}", r"\boxed{5\text{ km/h}}"),
    ("B", r"\boxed{A}"),
    (r"\text{yes}", r"\boxed{no}"),
    ("Monday", r"\boxed{\text{Tuesday}}"),
    (r"\text{even}", r"\boxed{\text{odd}}"),
    ("x=3", r"\boxed{x=4}"),
    ("x=3", r"\boxed{y=3}"),
    ("x+y=5", r"\boxed{5}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{13}}"),
    (r"\ln 2", r"\boxed{\log_{10} 2}"),
    (r"\frac{a}{b}", r"\boxed{\frac{b}{a}}"),
    ("0.3333x", r"\boxed{\frac{x}{3}}"),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\boxed{\begin{pmatrix}1 & 2 \\ 3 & 5\end{pmatrix}}",
    ),
    ("101_2", r"\boxed{101}"),
    ("101_2", r"\boxed{101_3}"),
    ("5", r"\boxed{101_2}"),
    ("10:30", r"\boxed{1:3}"),
    ("1:2:3", r"\boxed{2:4:5}"),
    ("3:4", r"\boxed{3:4:5}"),
    ("5", r"\boxed{5}\n\n\boxed{6"),
    ("6", r"\boxed{5} or \boxed{6}"),
    ("42", "There are 42 apples and 3 pears."),
    ("7", "The answer is seven."),
    ("5", ""),
    ("5", "   "),
    ("5", r"\boxed{\text{five}}"),
    ("5", r"\boxed{?}"),
    ("5", r"\boxed{5, 6}"),
    ("5", r"\boxed{6 \text{ or } 5}"),
    ("5", r"\boxed{5x}"),
    ("5", r"\boxed{4+2}"),
    ("x", r"\boxed{y}"),
]


def judge(gold, answer):
    return verdict({"kind": "math", "gold": gold}, answer)


@pytest.mark.parametrize(("gold", "answer"), RIGHT)
def test_the_same_answer_written_otherwise_is_right(gold, answer):
    assert judge(gold, answer).score == 1.0


@pytest.mark.parametrize(("gold", "answer"), WRONG)
def test_another_answer_is_wrong(gold, answer):
    judged = judge(gold, answer)
    assert judged.score == 0.0 and judged.reason


INTEGERS = st.integers(-1000, 1000)


@settings(max_examples=20, deadline=None)
@given(INTEGERS, INTEGERS.filter(bool), st.integers(1, 9))
def test_a_fraction_is_itself_however_it_is_expanded(above, below, factor):
    gold = rf"\frac{{{above}}}{{{below}}}"
    same = rf"\dfrac{{{above * factor}}}{{{below * factor}}}"
    assert judge(gold, rf"\boxed{{{same}}}").score == 1.0
    assert judge(gold, rf"\boxed{{{above}/{below}}}").score == 1.0
    assert judge(gold, rf"\boxed{{\frac{{{above + below}}}{{{below}}}}}").score == 0.0


@settings(max_examples=15, deadline=None)
@given(st.lists(INTEGERS, min_size=2, max_size=5, unique=True), st.randoms())
def test_a_set_has_no_order_and_a_tuple_has(items, random):
    mixed = random.sample(items, len(items))
    text, other = (", ".join(map(str, order)) for order in (items, mixed))
    assert judge(rf"\{{{text}\}}", rf"\boxed{{\{{{other}\}}}}").score == 1.0
    assert judge(f"({text})", rf"\boxed{{({other})}}").score == float(mixed == items)
    assert judge(f"({text})", rf"\boxed{{\{{{text}\}}}}").score == 0.0
    assert judge(rf"\{{{text}\}}", rf"\boxed{{{other}, 1001}}").score == 0.0


@settings(max_examples=15, deadline=None)
@given(INTEGERS, INTEGERS, st.booleans(), st.booleans())
def test_an_inequality_is_its_interval_and_no_other(one, other, closed_below, closed_above):
    low, high = sorted((one, other + 1001))
    below, above = (r"\le" if closed else "<" for closed in (closed_below, closed_above))
    left, right = "[" if closed_below else "(", "]" if closed_above else ")"
    inequality = rf"\boxed{{{low} {below} x {above} {high}}}"
    assert judge(f"{left}{low},{high}{right}", inequality).score == 1.0
    assert judge(f"{left}{low},{high + 1}{right}", inequality).score == 0.0
    assert judge(f"{'(' if closed_below else '['}{low},{high}{right}", inequality).score == 0.0


def test_a_huge_power_returns_from_any_thread():
    tower = "9^{9^{9}}"
    found = []
    with Verifiers(workers=1, seconds=2) as verifiers:
        pairs = [
            ({"kind": "math", "gold": tower}, rf"\boxed{{{tower}}}"),
            ({"kind": "math", "gold": "10^{10^{10}}+1"}, r"\boxed{10^{10^{10}}+2-1}"),
            ({"kind": "math", "gold": "0.5"}, r"\boxed{\frac12}"),
        ]
        thread = threading.Thread(target=lambda: found.extend(verifiers.judge(pairs)))
        thread.start()
        thread.join(120)
    assert [found[0].score, found[2].score] == [1.0, 1.0]
    assert found[1].score in (None, 1.0)
    assert verifiers.judged == 3


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", "9^{9^{9}}"),
        ("42", "2^{1000000000}"),
        ("42", "10^{10^{10}}"),
        ("42", "100000000!"),
        ("42", "1+10^{-10^{10}}"),
        ("x", "(x+1)^{100000000}"),
        ("10^{10^{10}}", "1"),
        ("10^{10^{10}}", r"\frac{1}{2}+x"),
    ],
)
def test_a_huge_power_is_wrong_at_once_where_the_other_side_is_small(gold, answer):
    assert judge(gold, rf"\boxed{{{answer}}}").score == 0.0


def test_powers_are_measured_and_not_computed():
    huge = ["9**9**9", "(10!)!", r"\frac{1}{10^{5000}}", "(2^{100})^{100}", "3+2^{2^{2^{2^{2^2}}}}"]
    small = [
        "2^{2024}",
        "x^{1000000}",
        r"10^{\frac{10000}{5000}}",
        "400!",
        "2^{1001-1000}",
        "^",
        "!",
    ]
    small += ["(" * 3000 + "5" + ")" * 3000, r"\sum_{n=1}^{1000000} n", "1^{9999999}", "0^0", "}{"]
    assert [magnitude.is_huge(text) for text in huge] == [True] * len(huge)
    assert [magnitude.is_huge(text) for text in small] == [False] * len(small)


@pytest.mark.parametrize("gold", [r"\frac{1}{", r"\sqrt", "", "   ", "?!"])
def test_a_reference_that_cannot_be_read_is_no_judgement_of_the_answer(gold):
    assert judge(gold, r"\boxed{3}").score is None


def test_a_spec_without_a_reference_is_refused():
    for spec, message in (({}, "needs gold"), ({"gold": 3}, "a text"), ({"gold": ""}, "valid: a")):
        with pytest.raises(ConfigError, match=message):
            check_spec({"kind": "math"} | spec)


RIGHT_AFTER_READING = [
    ("1,000,000", r"\boxed{10^6}"),
    ("1,024", r"\boxed{2^{10}}"),
    ("12,000", r"\boxed{3\cdot 4000}"),
    ("10^6", r"\boxed{1,000,000}"),
    ("2i", r"\boxed{\sqrt{-4}}"),
    ("-1", r"\boxed{i^2}"),
    ("i", r"\boxed{\sqrt{-1}}"),
    ("2i", r"\boxed{2\mathrm{i}}"),
    ("x=5", r"\boxed{5=x}"),
    ("y=2x+3", r"\boxed{y-2x=3}"),
    ("y=2x+3", r"\boxed{2x - y + 3 = 0}"),
    (r"\sum_{i=1}^{10} i", r"\boxed{55}"),
    ("101_2", r"\boxed{(101)_2}"),
    (r"5\text{ cm}^2", r"\boxed{5\text{ square centimeters}}"),
    ("C", "(C)"),
    ("7", r"\boxed{\text{The answer is }7}"),
    ("(2,3)", "So $x=2$ and $y=3$."),
    (r"\{2,3\}", "The solutions are $x=2$ and $x=3$."),
    ("2,3", "We get $x=2$ or $x=3$."),
    ("5000", r"\boxed{5\text{ thousand}}"),
    (r"\$10", r"\boxed{10\text{ dollars}}"),
    (r"\$10", r"\boxed{10}"),
    ("10", r"\boxed{\$10}"),
    ("x=2,y=3", r"\boxed{2,3}"),
    ("7", r"\boxed{a+b=7}"),
    ("7", r"\boxed{2+5=7}"),
    (r"5\text{ million dollars}", r"\boxed{\$5{,}000{,}000}"),
    (r"1.5\text{ million}", r"\boxed{1,500,000}"),
    (r"i\sqrt{3}", r"\boxed{\sqrt{-3}}"),
    ("36", r"\boxed{3\text{ dozen}}"),
]
WRONG_AFTER_READING = [
    ("7", r"\boxed{\ge 7}"),
    ("7", r"\boxed{\le 7}"),
    ("8", r"\boxed{2x=8}"),
    ("8", r"\boxed{x+1=8}"),
    ("5", r"\boxed{5\text{ million}}"),
    ("5", r"\boxed{5\text{ hundred}}"),
    (r"5\text{ thousand}", r"\boxed{5}"),
    (r"3\text{ dozen}", r"\boxed{3}"),
    ("7", r"\boxed{7\text{ or more}}"),
    ("7", r"\boxed{7\text{ is wrong}}"),
    ("7", r"\boxed{7\text{ or 8}}"),
    ("x=2,y=3", r"\boxed{3,2}"),
    (r"\$10", r"\boxed{10\text{ euros}}"),
    ("2", "The solutions are $x=2$ and $x=3$."),
    ("3", "The solutions are $x=2$ and $x=3$."),
    ("3", "We get $x=2$ or $x=3$."),
    ("2", "The answer is $2$ or $3$."),
    ("3", "The answer is $2$ or $3$."),
    ("2", "$x=2$ is wrong; there is no solution"),
    ("x=4", r"\boxed{2x=8}"),
    ("1,234", r"\boxed{1,2,3,4}"),
    ("y=2x+3", r"\boxed{y-2x=4}"),
]


@pytest.mark.parametrize(("gold", "answer"), RIGHT_AFTER_READING)
def test_thousands_words_of_number_complex_numbers_and_rows_are_read(gold, answer):
    assert judge(gold, answer).score == 1.0


@pytest.mark.parametrize(("gold", "answer"), WRONG_AFTER_READING)
def test_limits_unsolved_equations_other_money_and_parts_of_an_answer_are_wrong(gold, answer):
    assert judge(gold, answer).score == 0.0


OTHER_WRITINGS = [
    "答案是18",
    "答案是18。",
    "答案是 18。",
    "**答案：18**",
    "答案：18元",
    "答案：$18$。",
    "所以，他一共有18个。",
    "他有9个，她也有9个，总共9+9=18个。",
    "答えは18です。",
    "คำตอบคือ18",
    "คำตอบคือ 18",
    "উত্তর হল 18।",
    "జవాబు 18",
    "उत्तर 18 है।",
    "الجواب هو 18.",
    "Ответ: 18.",
    "답은 18입니다.",
    "Đáp án là 18.",
    "The answer is 18个。",
]


@pytest.mark.parametrize("text", OTHER_WRITINGS)
def test_a_number_among_words_of_any_writing_is_found(text):
    verdicts = [
        verdict({"kind": kind, "gold": gold}, text).score
        for gold in ("18", "17")
        for kind in ("math", "numeric")
    ]
    assert verdicts == [1.0, 1.0, 0.0, 0.0]


def test_words_of_any_writing_are_answers_too():
    assert verdict({"kind": "math", "gold": "星期二"}, "星期二").score == 1.0
    assert verdict({"kind": "math", "gold": "星期二"}, "The answer is 星期二。").score == 1.0
    assert verdict({"kind": "math", "gold": "星期二"}, "星期三").score == 0.0


@pytest.mark.parametrize("kind", ["math", "numeric"])
def test_what_stands_in_answer_tags_is_the_answer(kind):
    for text in ("<answer>18</answer>", "17 + 1\n<answer> $18$ </answer> in 3 steps."):
        assert [verdict({"kind": kind, "gold": g}, text).score for g in ("18", "3")] == [1.0, 0.0]
    twice = "<answer>17</answer> No: <answer>18</answer>"
    assert verdict({"kind": kind, "gold": "18"}, twice).score == 1.0
    assert verdict({"kind": kind, "gold": "18"}, "<answer>18").score == 1.0
