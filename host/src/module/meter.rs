//! Where a function pays for its fuel: decided from its code alone, before it is compiled.
//!
//! Instructions run up a debt, which is paid where it costs little: at the end of a loop's round all of it, and elsewhere
//! when more than [`DEBT_MAX`] has gathered, at the next place where ways part or meet. Where ways meet, the
//! greater debt counts. What a function still owes when it returns it has paid before it began: the most
//! that any way through it leaves unpaid. Whether fuel is left is checked when a function begins, when a round ends,
//! and by the host after the call.
//!
//! Invariants:
//! - What was paid is never less than the cost ([`cost`]) of the instructions executed, those of a way that ends in a trap
//!   apart.
//! - Between two checks lies code without loops or calls of defined functions.
//!
//! So straight code, branches and small functions cost next to nothing to meter, and the code that says "no fuel
//! left" is one trap and no call, which leaves the compiler its registers.

use wasmparser::BinaryReaderError;
use wasmparser::FunctionBody;
use wasmparser::Operator;

use super::cost;

/// Fuel that a way through a function may owe where ways part or meet.
const DEBT_MAX: u32 = 64;

/// A constant length up to which bulk instructions pay like all others; a longer one is checked at once.
const SMALL_BULK_BYTES: i32 = 1 << 10;

/// What to insert, and before which byte of the module.
pub(super) struct Insertion {
    pub(super) at: usize,
    pub(super) what: What,
}

#[derive(Clone, Copy)]
pub(super) enum What {
    /// Pay so much.
    Pay(u32),
    /// Check, and pay so much.
    PayAndCheck(u32),
    /// Pay so much for each unit that the `i32` on top of the stack counts, and check that there was so much.
    PayEach(u32),
    /// Others may have changed the fuel.
    Reload,
}

/// How one function is metered.
pub(super) struct Plan {
    /// To pay at the beginning, with a check.
    pub(super) entry: u32,
    /// By place, ascending.
    pub(super) insertions: Vec<Insertion>,
}

/// A block, loop, `if` or function whose end is not yet there.
struct Frame {
    /// How many loops it lies in.
    depth: usize,
    is_loop: bool,
    /// What the ways owe at most that branch to its end; `None` as long as there is none.
    at_end: Option<u32>,
    /// For an `if` without `else` so far: what is owed where it began.
    skipped: Option<u32>,
}

struct Planner {
    plan: Plan,
    /// What the ways owed into the loops that the place lies in: each into its loop and those outside of it together, the innermost last.
    /// Within a loop debts begin at 0, as each round pays its own; a way out of it owes both. Sums, because a function may have a
    /// hundred thousand loops, one in the other, and as many ways out.
    before: Vec<u64>,
    frames: Vec<Frame>,
    /// What the way here owes; `None` where no way leads.
    debt: Option<u32>,
}

/// Decides where the function pays. The body has been validated.
pub(super) fn plan(body: &FunctionBody<'_>) -> Result<Plan, BinaryReaderError> {
    let mut planner = Planner {
        plan: Plan { entry: 0, insertions: Vec::new() },
        before: Vec::new(),
        frames: vec![Frame { depth: 0, is_loop: false, at_end: None, skipped: None }],
        debt: Some(0),
    };
    let mut operators = body.get_operators_reader()?;
    let mut constant = None;
    while !operators.eof() {
        let at = operators.original_position();
        let operator = operators.read()?;
        planner.step(at, operators.original_position(), &operator, constant);
        constant = match operator {
            Operator::I32Const { value } => Some(value),
            _ => None,
        };
    }
    Ok(planner.plan)
}

impl Planner {
    /// `constant`: the instruction before gave this number.
    fn step(&mut self, at: usize, end: usize, operator: &Operator<'_>, constant: Option<i32>) {
        self.owe(cost::of(operator));
        if let Some(each) = cost::each(operator) {
            match constant {
                Some(count) if (0..=SMALL_BULK_BYTES).contains(&count) => {
                    self.owe(count.cast_unsigned().saturating_mul(each));
                }
                _ => self.insert(at, What::PayEach(each)),
            }
        }
        match operator {
            Operator::Block { .. } => self.begin(false, None),
            Operator::If { .. } => {
                self.settle(at);
                self.begin(false, self.debt);
            }
            Operator::Else => {
                self.settle(at);
                if let Some(frame) = self.frames.last_mut() {
                    frame.at_end = frame.at_end.max(self.debt);
                    self.debt = frame.skipped.take();
                }
            }
            Operator::Loop { .. } => {
                self.settle(at);
                self.begin(true, None);
                let outside = self.before.last().copied().unwrap_or(0);
                self.before.push(outside.saturating_add(self.debt.unwrap_or(0).into()));
                self.debt = self.debt.map(|_| 0);
            }
            Operator::End => {
                self.settle(at);
                self.end();
            }
            Operator::Br { relative_depth } => {
                self.branch(at, &[*relative_depth]);
                self.debt = None;
            }
            Operator::BrIf { relative_depth } => self.branch(at, &[*relative_depth]),
            Operator::BrTable { targets } => {
                let depths: Vec<_> = targets.targets().flatten().chain([targets.default()]).collect();
                self.branch(at, &depths);
                self.debt = None;
            }
            Operator::Return => {
                self.settle(at);
                self.leave();
                self.debt = None;
            }
            Operator::Unreachable => self.debt = None,
            Operator::Call { .. } | Operator::CallIndirect { .. } => self.insert(end, What::Reload),
            _ => {}
        }
    }

    fn owe(&mut self, more: u32) {
        self.debt = self.debt.map(|debt| debt.saturating_add(more));
    }

    fn insert(&mut self, at: usize, what: What) {
        self.plan.insertions.push(Insertion { at, what });
    }

    /// Pays what is owed if it is much.
    fn settle(&mut self, at: usize) {
        if let Some(debt) = self.debt
            && debt > DEBT_MAX
        {
            self.insert(at, What::Pay(debt));
            self.debt = Some(0);
        }
    }

    fn begin(&mut self, is_loop: bool, skipped: Option<u32>) {
        self.frames.push(Frame { depth: self.before.len(), is_loop, at_end: None, skipped });
    }

    fn end(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        if frame.is_loop {
            self.debt = self.debt_outside(frame.depth);
            self.before.pop();
        }
        self.debt = self.debt.max(frame.at_end).max(frame.skipped);
        if self.frames.is_empty() {
            self.leave();
        }
    }

    /// What the way here owes once it is in no more than `depth` loops.
    fn debt_outside(&self, depth: usize) -> Option<u32> {
        let all = self.before.last().copied().unwrap_or(0);
        let outside = depth.checked_sub(1).map_or(0, |place| self.before.get(place).copied().unwrap_or(all));
        let between = u32::try_from(all.saturating_sub(outside)).unwrap_or(u32::MAX);
        self.debt.map(|debt| debt.saturating_add(between))
    }

    /// Ways branch to the labels so many frames out.
    fn branch(&mut self, at: usize, labels: &[u32]) {
        let places: Vec<_> =
            labels.iter().filter_map(|label| self.frames.len().checked_sub(*label as usize + 1)).collect();
        let back = places.iter().filter_map(|place| self.frames.get(*place)).filter(|frame| frame.is_loop);
        // What is owed since the outermost loop that goes into its next round.
        let round = back.map(|frame| self.debt_outside(frame.depth + 1)).max();
        match round.flatten() {
            Some(debt) => {
                self.insert(at, What::PayAndCheck(debt));
                self.debt = Some(0);
            }
            None => self.settle(at),
        }
        for place in places {
            let depth = self.frames.get(place).filter(|frame| !frame.is_loop).map(|frame| frame.depth);
            let debt = depth.and_then(|depth| self.debt_outside(depth));
            if let Some(frame) = self.frames.get_mut(place) {
                frame.at_end = frame.at_end.max(debt);
            }
        }
    }

    /// The way leaves the function.
    fn leave(&mut self) {
        self.plan.entry = self.plan.entry.max(self.debt_outside(0).unwrap_or(0));
    }
}
