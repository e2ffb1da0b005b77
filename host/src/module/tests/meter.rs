//! What a call pays in fuel, held to what it does.

use wasmparser::FunctionBody;
use wasmparser::Operator;
use wasmparser::Parser;
use wasmparser::Payload;

use super::*;
use crate::module::cost;
use crate::module::meter;
use crate::module::meter::What;

/// Walks one way through a function, taking turns by `choose`, as the code itself might: returns what the way cost and what
/// it paid, or `None` where it ends in a trap or goes on for too long.
fn walk(body: &FunctionBody<'_>, choose: &mut dyn FnMut() -> usize) -> Option<(u64, u64)> {
    let plan = meter::plan(body).unwrap();
    let mut places = Vec::new();
    let mut operators = body.get_operators_reader().unwrap();
    while !operators.eof() {
        places.push((operators.original_position(), operators.read().unwrap()));
    }
    // For each block, loop and `if` where its `else` and its `end` are.
    let mut ends = vec![(0, 0); places.len()];
    let mut open = Vec::new();
    for (number, (_, operator)) in places.iter().enumerate() {
        match operator {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => open.push(number),
            Operator::Else => ends[*open.last().unwrap()].0 = number,
            Operator::End => {
                if let Some(start) = open.pop() {
                    ends[start].1 = number;
                }
            }
            _ => {}
        }
    }
    let (mut cost, mut paid) = (0, u64::from(plan.entry));
    let mut frames: Vec<usize> = Vec::new();
    let mut at = 0;
    for _ in 0..2_000 {
        let (place, operator) = &places[at];
        for insertion in plan.insertions.iter().filter(|insertion| insertion.at == *place) {
            if let What::Pay(fuel) | What::PayAndCheck(fuel) = insertion.what {
                paid += u64::from(fuel);
            }
        }
        cost += u64::from(cost::of(operator));
        at += 1;
        let go = |label: u32, frames: &mut Vec<usize>| match frames.len().checked_sub(label as usize + 1) {
            None => places.len(),
            Some(frame) => {
                let start = frames[frame];
                let is_loop = matches!(places[start].1, Operator::Loop { .. });
                frames.truncate(if is_loop { frame + 1 } else { frame });
                if is_loop { start + 1 } else { ends[start].1 + 1 }
            }
        };
        match operator {
            Operator::Block { .. } | Operator::Loop { .. } => frames.push(at - 1),
            Operator::If { .. } => {
                frames.push(at - 1);
                let (other, end) = ends[at - 1];
                match (choose() % 2, other) {
                    (0, _) => {}
                    (_, 0) => at = end,
                    (_, other) => at = other + 1,
                }
            }
            // The `then` part is over.
            Operator::Else => at = ends[*frames.last().unwrap()].1,
            Operator::End if frames.pop().is_none() => return Some((cost, paid)),
            Operator::Br { relative_depth } => at = go(*relative_depth, &mut frames),
            Operator::BrIf { relative_depth } if choose().is_multiple_of(2) => at = go(*relative_depth, &mut frames),
            Operator::BrTable { targets } => {
                let all: Vec<_> = targets.targets().flatten().chain([targets.default()]).collect();
                at = go(all[choose() % all.len()], &mut frames);
            }
            Operator::Return => return Some((cost, paid)),
            Operator::Unreachable => return None,
            _ => {}
        }
        if at == places.len() {
            return Some((cost, paid));
        }
    }
    None
}

#[test]
fn no_way_through_a_function_pays_less_than_it_costs() {
    let (_, kv) = crate::bundled::all().iter().find(|(name, _)| *name == "kv").unwrap();
    let mut random = 1_u64;
    let mut choose = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize
    };
    let (mut all_cost, mut all_paid) = (0, 0);
    for payload in Parser::new(0).parse_all(kv) {
        let Payload::CodeSectionEntry(body) = payload.unwrap() else { continue };
        for _ in 0..30 {
            let Some((cost, paid)) = walk(&body, &mut choose) else { continue };
            assert!(paid >= cost, "a way through the function at byte {} pays {paid} for {cost}", body.range().start);
            all_cost += cost;
            all_paid += paid;
        }
    }
    assert!(all_cost > 100_000, "ways were walked");
    assert!(all_paid < all_cost * 2, "and not made to pay for others' ways: {all_paid} for {all_cost}");
}

/// Fuel of `apply` with this body, on a machine of its own.
fn fuel(body: &str) -> (Outcome, u64) {
    let apply = r#"(export "apply") (param i32 i32) (result i64)"#;
    let wat =
        super::code::with("").replace(&format!("{apply} (i64.const 0)"), &format!("{apply} {body} (i64.const 0)"));
    let mut machine =
        Machine::init(&load(&wat), &limits(), &Context::default(), b"{}", &mut Effects::default()).unwrap();
    let mut effects = Effects::default();
    let outcome = machine.apply(&at(1), b"", &mut effects).unwrap();
    (outcome, effects.fuel_used)
}

#[test]
fn a_call_pays_for_what_it_does() {
    // `alloc` and the last line of `apply` are one instruction each.
    let used = |body: &str| {
        let (outcome, fuel) = fuel(body);
        assert!(matches!(outcome, Outcome::Reply(_)), "{outcome:?}");
        fuel - 2
    };
    assert_eq!(used(""), 0);
    assert_eq!(used("(nop) (drop (i32.const 1))"), 1);
    assert_eq!(used("(drop (i32.add (i32.const 1) (i32.const 2)))"), 3);
    let round = "(br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1000)))";
    assert_eq!(used(&format!("(local $n i32) (loop $again {round})")), 7 * 1000);
    // Five more instructions in every second round; where ways meet, the dearer one counts.
    let other = "(if (i32.and (local.get $n) (i32.const 1)) (then (nop) (drop (i32.const 1))))";
    assert_eq!(used(&format!("(local $n i32) (loop $again {other} {round})")), 12 * 1000);
    // So much that it is paid where it is spent: those rounds alone pay.
    let dear = "(drop (i32.const 1))".repeat(100);
    let other = format!("(if (i32.and (local.get $n) (i32.const 1)) (then {dear}))");
    assert_eq!(used(&format!("(local $n i32) (loop $again {other} {round})")), 11 * 1000 + 100 * 500 + 4 * 500);
    // Bytes and pages.
    assert_eq!(used("(memory.fill (i32.const 0) (i32.const 0) (i32.const 1000))"), 4 + 1000);
    let length = "(i32.add (i32.const 1999) (i32.const 1))";
    assert_eq!(used(&format!("(memory.copy (i32.const 0) (i32.const 9) {length})")), 6 + 2000);
    assert_eq!(used("(drop (memory.grow (i32.const 3)))"), 2 + 3 * 64);
}

#[test]
fn what_does_not_end_or_is_too_much_at_once_runs_out_of_fuel() {
    for body in [
        "(loop $again (br $again))",
        "(loop $outer (loop $inner (br $outer)))",
        "(local $n i32) (loop $again (br_table $again $again (local.get $n)))",
        "(memory.fill (i32.const 0) (i32.const 0) (i32.const 2000000))",
        "(memory.copy (i32.const 0) (i32.const 0) (i32.sub (i32.const 0) (i32.const 1)))",
    ] {
        let (outcome, used) = fuel(body);
        assert_eq!(code(&outcome), TrapCode::OutOfFuel, "{body}: {outcome:?}");
        assert_eq!(used, limits().fuel_per_entry, "{body}: no more than it had");
    }
}

/// For each way out of loops all loops on it were gone through: a function of a mebibyte took minutes to plan.
#[test]
fn ways_out_of_many_loops_are_planned_in_no_more_time_than_they_take_to_read() {
    const LOOPS: u32 = 60_000;
    let mut body = vec![0];
    for _ in 0..LOOPS {
        body.extend([0x03, 0x40]);
    }
    let labels = |bytes: &mut Vec<u8>, mut number: u32| {
        while number > 0x7f {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
    };
    // local.get would need a local: i32.const 0, br_table.
    body.extend([0x41, 0, 0x0e]);
    labels(&mut body, LOOPS - 1);
    for label in (0..LOOPS).rev() {
        labels(&mut body, label);
    }
    body.extend(vec![0x0b; LOOPS as usize + 1]);
    let body = wasmparser::FunctionBody::new(wasmparser::BinaryReader::new(&body, 0));
    let plan = crate::module::meter::plan(&body).unwrap();
    assert!(!plan.insertions.is_empty());
}
