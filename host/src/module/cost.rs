//! The fuel each instruction costs. Fuel decides outcomes, so the table is part of the cluster's version.
//!
//! Flat costs: one per instruction, nothing for those that make no code. Work whose size is only known
//! when it runs costs per byte or per page, so that one instruction cannot take long for little fuel.

use wasmtime::OperatorCost;
use wasmtime::VariableOperatorCost;

/// Counts up whenever the same module could give another fuel or stack outcome than before: a new cost
/// table, another stack rewrite, another fuel accounting in wasmtime. Part of the cluster's version.
pub const RUNTIME_VERSION: u32 = 1;

/// The table of [`RUNTIME_VERSION`]. What is not named here costs 1; `tests::costs` holds every
/// instruction's cost, so a wasmtime that changes a default is noticed.
pub(super) fn operator_cost() -> OperatorCost {
    OperatorCost {
        Nop: 0,
        Drop: 0,
        Block: 0,
        Loop: 0,
        Else: 0,
        End: 0,
        Return: 0,
        Unreachable: 0,
        variable: VariableOperatorCost {
            memory_copy_per_byte: 1,
            memory_fill_per_byte: 1,
            memory_init_per_byte: 1,
            // Growth itself is a system call; the pages cost when they are touched.
            memory_grow_per_page: 64,
            ..VariableOperatorCost::new()
        },
        ..OperatorCost::new()
    }
}
