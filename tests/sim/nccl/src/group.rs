//! Groups: operations that are submitted together, so that none waits for a later one of the same thread.

use std::cell::RefCell;
use std::sync::Arc;

use crate::Result;
use crate::world::{Transfer, World};

/// An operation of one rank.
pub enum Operation {
    Collective { world: Arc<World>, number: u64, transfer: Transfer },
    Send { world: Arc<World>, number: u64, transfer: Transfer, peer: usize },
    Receive { world: Arc<World>, transfer: Transfer, peer: usize },
}

#[derive(Default)]
struct Group {
    depth: usize,
    waiting: Vec<Operation>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

pub fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

pub fn end() -> Result<()> {
    let due = GROUP.with_borrow_mut(|group| {
        group.depth = group.depth.saturating_sub(1);
        if group.depth == 0 { std::mem::take(&mut group.waiting) } else { Vec::new() }
    });
    carry_out(due)
}

/// Now, or at the end of the group.
pub fn submit(operation: Operation) -> Result<()> {
    let now = GROUP.with_borrow_mut(|group| {
        if group.depth > 0 {
            group.waiting.push(operation);
            None
        } else {
            Some(operation)
        }
    });
    now.map_or(Ok(()), |operation| carry_out(vec![operation]))
}

/// First everything is offered to the other ranks, then everything is waited for: so no two ranks wait for each other.
fn carry_out(operations: Vec<Operation>) -> Result<()> {
    for operation in &operations {
        match operation {
            Operation::Collective { world, number, transfer } => world.arrive(*number, transfer),
            Operation::Send { world, number, transfer, peer } => world.offer(*number, transfer, *peer),
            Operation::Receive { .. } => {}
        }
    }
    for operation in &operations {
        if let Operation::Receive { world, transfer, peer } = operation {
            world.receive(transfer, *peer)?;
        }
    }
    for operation in &operations {
        match operation {
            Operation::Collective { world, number, .. } => world.wait(*number)?,
            Operation::Send { world, transfer, peer, .. } => world.wait_taken(transfer, *peer)?,
            Operation::Receive { .. } => {}
        }
    }
    crate::time::pass(&operations)
}
