"""`python -m benchmarks sass`: the hot loop that it finds in machine code, what it counts there, and what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.sass import command, machine_code, table
from benchmarks.sass.cubins import Compiled
from benchmarks.sass.cuda_kernels import readable

HEADER = "\tcode for sm_90\n\t\tFunction : {}\n\t.headerflags\t@EF_CUDA_SM90\n"
# One vector of 16 bytes an iteration where addresses are aligned, else one value; then a loop of narrow stores.
LOOP = [
    "LDC R1, c[0x0][0x28]",
    "LDG.E.64 R2, desc[UR4][R2.64]",
    "ISETP.NE.AND P0, PT, R4, RZ, PT",  # 0x20: the loop's head
    "@!P0 BRA 0x80",
    "LDG.E.128 R8, desc[UR4][R2.64]",
    "FMUL R8, R8, R5",
    "STG.E.128 desc[UR4][R2.64], R8",
    "BRA 0xb0",
    "LDG.E R8, desc[UR4][R2.64]",  # 0x80: unaligned
    "FMUL R8, R8, R5",
    "STG.E.U8 desc[UR4][R2.64], R8",
    "ISETP.LT.AND P1, PT, R6, R7, PT",  # 0xb0
    "BRA P1, 0x20",
    "STG.E desc[UR4][R2.64], R8",  # 0xd0: the second loop
    "@P2 BRA 0xd0",
    "EXIT",
    "BRA 0x100",  # padding, never reached
]
STRAIGHT = [
    "LDG.E.128 R4, [R2.64]",
    "@P0 BRA 0x40",
    "IADD3 R4, R4, R5, RZ",
    "IADD3 R4, R4, R6, RZ",
    "STG.E [R2.64], R4",
]
STRAIGHT += ["EXIT"]
HISTOGRAM = ["LDG.E.128 R4, [R2.64]", "@P0 BRA 0x30", "ATOMS.POPC.INC.32 RZ, [R6]", "@P1 BRA 0x0", "EXIT"]


def disassembly(name, instructions):
    """As cuobjdump prints it, with the encoding of each instruction, which takes two lines."""
    lines = [
        f"        /*{16 * i:04x}*/   {text} ;   /* 0x0000 */\n   /* 0x0fe2 */\n" for i, text in enumerate(instructions)
    ]
    return HEADER.format(name) + "".join(lines)


def parse(instructions):
    [(_, kernel)] = machine_code.kernels(disassembly("f", instructions))
    return kernel


def test_every_function_of_a_file_is_found_with_all_its_instructions():
    found = list(machine_code.kernels(disassembly("first", LOOP) + disassembly("second", STRAIGHT)))
    assert [(name, len(kernel)) for name, kernel in found] == [("first", len(LOOP)), ("second", len(STRAIGHT))]


def test_branches_lead_where_they_say_and_conditional_ones_to_the_next_too():
    kernel = parse(LOOP)
    assert kernel[3].next == (4, 8)
    assert kernel[7].next == (11,)
    assert kernel[12].next == (13, 2)  # its condition is an operand
    assert kernel[15].next == ()
    assert kernel[-1].next == (16,)


@pytest.mark.parametrize(
    ("opcode", "n_bytes"),
    [
        ("LDG.E.128", 16),
        ("STG.E.64", 8),
        ("LDG.E.64.STRONG.SYS", 8),
        ("LDG.E", 4),
        ("LDG.E.U16", 2),
        ("STG.E.S8.CONSTANT", 1),
        ("LDS.128", 0),
        ("ATOMG.E.ADD.64.STRONG.GPU", 0),
        ("IMAD.WIDE.U32", 0),
    ],
)
def test_an_access_has_the_width_of_its_suffix(opcode, n_bytes):
    assert machine_code.Instruction(opcode, ()).global_bytes == n_bytes


def test_the_hot_loop_is_counted_along_its_widest_way():
    kernel = parse(LOOP)
    assert machine_code.widest_access(kernel) == 16
    assert machine_code.hot_loop(kernel) == machine_code.HotLoop(n_instructions=8, widest_bytes=32)


def test_without_a_loop_it_is_the_shortest_way_through_the_kernel():
    assert machine_code.hot_loop(parse(STRAIGHT)) == machine_code.HotLoop(n_instructions=4, widest_bytes=16)


def test_a_histograms_atomics_are_counted_though_a_branch_may_skip_them():
    assert machine_code.hot_loop(parse(HISTOGRAM)) == machine_code.HotLoop(n_instructions=4, widest_bytes=16)


def test_a_loop_around_the_hot_one_is_not_taken_for_it():
    nested = ["MOV R1, R2", *LOOP[2:13], "@P3 BRA 0x0", "EXIT"]
    moved = [text.replace("0x80", "0x70").replace("0xb0", "0xa0").replace("0x20", "0x10") for text in nested]
    assert machine_code.hot_loop(parse(moved)).n_instructions == 8


def test_counts_are_of_a_weight_and_shares_follow_the_stated_formula():
    row = table.make_row(
        "CUDA", "ties_kernel", "float32", Compiled("f", 32, 0, parse(["LDG.E.128 R4, [R2.64]", "EXIT"]))
    )
    assert (row["registers"], row["stack_bytes"], row["widest_bytes"]) == (32, 0, 16)
    found = row["per_weight"]  # four weights in two instructions
    assert (found["instructions"], found["bytes"]) == (0.5, 4)
    assert found["issue_over_memory"] == pytest.approx(0.5 / (132 * 4 * 32 * 1.98e9) / (4 / 4.3e12))
    assert found["expected_share"] == 1
    many = parse(["LDG.E.128 R4, [R2.64]", *["NOP"] * 1000, "EXIT"])
    slow = table.per_weight(table.Traffic(), "bfloat16", Compiled("f", 1, 0, many))
    assert slow["instructions"] == 1002 / 8
    assert slow["expected_share"] == pytest.approx(1 / slow["issue_over_memory"])


def test_a_mangled_name_tells_the_kernel_and_its_dtype():
    start = "_ZN3dsd4cuda40_GLOBAL__N__30cd1496_8_prune_cu_95fa7e78"
    assert readable(f"{start}12prune_kernelINS0_8BFloat16EEEvNS0_5TableINS0_9SelectRowEEEPKl") == (
        "prune_kernel",
        "bfloat16",
    )
    assert readable(f"{start}16pack_mask_kernelENS0_5TableINS0_7MaskRowEEE") == ("pack_mask_kernel", None)


def test_the_command_prints_every_kernel_and_writes_what_it_prints(tmp_path):
    pytest.importorskip("triton")
    path = tmp_path / "sass.json"
    program = [sys.executable, "-W", "error", "-m", "benchmarks", "sass", "--ops", "pack_mask,unpack_mask"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [*program, "--dtype", "float32", "--output", path],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path / "triton")},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = command.load(path)
    names = [row["kernel"] for row in report["rows"]]
    expected = ["Triton pack_kernel", "Triton unpack_kernel"]
    if not report["left_out"]:
        expected += ["CUDA pack_mask_kernel", "CUDA unpack_mask_kernel"]
    assert names == expected
    for row in report["rows"]:
        assert f"{row['kernel']} " in result.stdout
        assert row["stack_bytes"] == 0
        assert row["per_weight"]["bytes"] == 1.125
    assert table.NOT_MEASURED in result.stdout


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        main(["sass", *args])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--arch", "sm_70"), "error: argument --arch: invalid choice: 'sm_70'"),
        (("--ops", "step"), "error: argument --ops: expected some of masked_sgd,"),
        (("--output", "."), "error: --output: expected a file, . is a folder"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, args, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    assert refusal(capsys, *args).startswith(message)


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(command, "find_spec", lambda name: name)
    assert refusal(capsys).startswith("error: TRITON_INTERPRET: expected to be unset")


def test_a_machine_without_triton_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert refusal(capsys) == "error: sass: needs triton, which is not installed: pip install 'triton>=3.6'"
