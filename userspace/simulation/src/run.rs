// SPDX-License-Identifier: GPL-2.0-only

//! A run: what a seed stands for, from a fresh region to the last close.

use crate::config::Config;
use crate::crash::{self, PowerLoss};
use crate::world::World;
use fastrand::Rng;
use presnap_machine::log;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::rc::Rc;

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// Power losses looked at.
    pub points: u64,
    /// How much of what was done.
    pub reached: BTreeMap<&'static str, u64>,
    /// What was wrong.
    pub failure: Option<String>,
    /// What was done last, if that was asked for.
    pub log: Vec<String>,
}

/// Runs a seed. With `verbose`, keeps what was done.
pub fn run(seed: u64, verbose: bool) -> Outcome {
    log::turn_on(verbose);
    crash::begin_run();
    let before = crash::points();
    let result = catch_unwind(AssertUnwindSafe(|| lives(seed)));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(why)) => Some(why),
        Err(panic) => Some(
            panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_else(|| "panic".to_owned()),
        ),
    };
    let points = crash::points() - before;
    Outcome { points, reached: REACHED.take(), failure, log: log::take() }
}

thread_local! {
    static REACHED: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Something was done so often.
pub(crate) fn reached(what: &'static str, times: u64) {
    REACHED.with_borrow_mut(|all| *all.entry(what).or_default() += times);
}

fn lives(seed: u64) -> Result<(), String> {
    let mut rng = Rng::with_seed(seed);
    let config = Rc::new(Config::of(&mut rng));
    presnap_machine::note!("{config:?}");
    let mut remains = World::fresh(config.clone(), &mut rng);
    for life in 0..config.lives {
        let crashes = config.crash_one_in;
        let world = World::open(&remains, config.clone(), rng.u64(..), 0, crashes)
            .map_err(|e| format!("life {life}: {e}"))?;
        world.check_changes().map_err(|e| format!("life {life}, opened: {e}"))?;
        world.set_trouble(true);
        world.live(config.actions).map_err(|e| format!("life {life}: {e}"))?;
        let loss = rng.bool().then(|| {
            let _entered = world.machine.enter();
            PowerLoss::now(&world)
        });
        remains = match (loss, rng.u32(..3)) {
            (None, 0) => {
                // In the middle of something, if possible.
                world.close(true).map_err(|e| format!("life {life}, closed in a hurry: {e}"))?;
                world.remains()
            }
            (loss, _) => {
                world.set_trouble(false);
                world.settle().map_err(|e| format!("life {life}, settling: {e}"))?;
                world.check().map_err(|e| format!("life {life}, at rest: {e}"))?;
                match loss {
                    Some(loss) => loss.into_remains(),
                    None => {
                        world.close(false).map_err(|e| format!("life {life}, closed: {e}"))?;
                        world.remains()
                    }
                }
            }
        };
        world.end();
    }
    Ok(())
}
