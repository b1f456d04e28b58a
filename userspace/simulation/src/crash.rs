// SPDX-License-Identifier: GPL-2.0-only

//! Power losses: taken at any step, looked at as soon as nothing else is under way.

use crate::inspect::Region;
use crate::run::reached;
use crate::world::{Remains, World, ORIGIN, REGION};
use presnap_machine::note;
use std::cell::Cell;
use std::rc::Rc;

thread_local! {
    static POINTS: Cell<u64> = const { Cell::new(0) };
    static BEGUN: Cell<u64> = const { Cell::new(0) };
}

/// Power losses looked at so far by this thread.
pub(crate) fn points() -> u64 {
    POINTS.get()
}

/// Power losses of a run after which they come seldom: many seeds see more than much of one.
const MANY: u64 = 300;

/// How much more seldom power fails now.
pub(crate) fn rarity() -> u32 {
    if points() - BEGUN.get() < MANY {
        1
    } else {
        30
    }
}

/// A run begins.
pub(crate) fn begin_run() {
    BEGUN.set(points());
}

/// What a power loss leaves.
pub(crate) struct PowerLoss {
    remains: Remains,
    seed: u64,
}

impl PowerLoss {
    /// Power fails now, in a copy of the world.
    pub(crate) fn now(world: &World) -> Self {
        world.ask();
        let fate = &mut *world.fate.borrow_mut();
        let [origin, region] =
            [ORIGIN, REGION].map(|n| world.machine.disk(n, |disk| disk.crash(fate)));
        let remains = Remains {
            now: world.machine.now() + fate.u64(1_000..1_000_000_000),
            origin,
            region,
            oracle: world.oracle.borrow().clone(),
            told: world.told.borrow().clone(),
        };
        let seed = fate.u64(..);
        note!("power loss {seed:x}");
        Self { remains, seed }
    }

    /// What is left.
    pub(crate) fn into_remains(self) -> Remains {
        self.remains
    }
}

/// Looks at the power losses that a world has met.
pub(crate) fn look_at_losses(world: &World) -> Result<(), String> {
    loop {
        let Some(loss) = world.losses.borrow_mut().pop() else { return Ok(()) };
        POINTS.set(POINTS.get() + 1);
        if world.depth > 0 {
            reached("power losses after a power loss", 1);
        }
        let seed = loss.seed;
        look_at(world, loss).map_err(|e| format!("after power loss {seed:x}: {e}"))?;
    }
}

/// Opens the device on what is left, and checks that it has what it must, and goes on working.
fn look_at(world: &World, loss: PowerLoss) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(loss.seed);
    let remains = &loss.remains;
    // What a tool sees that reads the region without a device.
    remains.oracle.check(&Region::read(&remains.region)?, &remains.told)?;
    // Power may fail again while the device is being opened.
    let again = if world.depth < 2 && rng.u32(..4) == 0 { 12 } else { 0 };
    let seed = rng.u64(..);
    let after = World::open(remains, world.config.clone(), seed, world.depth + 1, again)?;
    {
        let _entered = after.machine.enter();
        look_at_losses(&after)?;
    }
    after.crash_one_in.set(0);
    after.check_changes()?;
    after.check_images(2)?;
    if rng.u32(..4) == 0 {
        go_on(&after, &mut rng)?;
    }
    after.end();
    Ok(())
}

/// It works as before: snapshots are taken and are right, and it closes in order.
fn go_on(after: &Rc<World>, rng: &mut fastrand::Rng) -> Result<(), String> {
    if rng.u32(..16) == 0 && after.depth < 2 {
        after.crash_one_in.set(200);
    }
    after.history.want_snapshot();
    after.live(rng.u32(5..60))?;
    let hurry = rng.u32(..4) == 0;
    if !hurry {
        after.settle()?;
        after.check()?;
    }
    if hurry || rng.bool() {
        after.close(hurry)?;
        let seed = rng.u64(..);
        let opened = World::open(&after.remains(), after.config.clone(), seed, after.depth + 1, 0)?;
        opened.check()?;
        opened.end();
    }
    Ok(())
}
