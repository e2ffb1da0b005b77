//! The fuel each instruction costs. Fuel decides outcomes, so the table is part of the cluster's version.
//!
//! Flat costs: one per instruction, nothing for those that make no code. Work whose size is only known
//! when it runs costs per byte or per page, so that one instruction cannot take long for little fuel. When it is
//! paid: `meter.rs`.

use wasmparser::Operator;

/// Counts up whenever the same module could give another fuel or stack outcome than before: a new cost
/// table, another way of metering, another stack rewrite. Part of the cluster's version.
pub const RUNTIME_VERSION: u32 = 2;

/// What the instruction costs each time.
pub(super) fn of(operator: &Operator<'_>) -> u32 {
    match operator {
        Operator::Nop
        | Operator::Drop
        | Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::Else
        | Operator::End
        | Operator::Return
        | Operator::Unreachable => 0,
        _ => 1,
    }
}

/// What it costs beside that for each byte or page that the number on top of the stack says.
pub(super) fn each(operator: &Operator<'_>) -> Option<u32> {
    match operator {
        Operator::MemoryCopy { .. } | Operator::MemoryFill { .. } | Operator::MemoryInit { .. } => Some(1),
        // Growth itself is a system call; the pages cost when they are touched.
        Operator::MemoryGrow { .. } => Some(64),
        _ => None,
    }
}
