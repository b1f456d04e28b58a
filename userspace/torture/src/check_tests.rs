// SPDX-License-Identifier: GPL-2.0-only

//! A checker that cannot fail is worthless: good histories pass, each kind of bad one is caught.

use super::*;
use crate::rng::Rng;

fn w(submit: u64, complete: u64, sector: u32, sectors: u32) -> Write {
    Write { submit, complete, sector, sectors, kind: Kind::Data, whole: false, writer: 0 }
}

fn kind(kind: Kind, w: Write) -> Write {
    Write { kind, ..w }
}

fn whole(w: Write) -> Write {
    Write { whole: true, ..w }
}

const CUT: Cut = Cut { begin: 100, end: 200 };

fn count(history: &[Write], seen: &[Seen]) -> u64 {
    check(history, seen, CUT, 10).count
}

use Seen::{Stamp, Zero};

#[test]
fn completed_before_the_snapshot_is_in_it() {
    let h = [w(1, 2, 0, 2), w(10, 11, 0, 1)];
    assert_eq!(count(&h, &[Stamp(10), Stamp(1)]), 0);
    assert_eq!(count(&h, &[Stamp(1), Stamp(1)]), 1);
    assert_eq!(count(&h, &[Zero, Stamp(1)]), 1);
    assert_eq!(count(&h, &[Stamp(10), Zero]), 1);
}

#[test]
fn submitted_after_the_return_is_not() {
    let h = [w(1, 2, 0, 1), w(201, 202, 0, 1)];
    assert_eq!(count(&h, &[Stamp(1)]), 0);
    assert_eq!(count(&h, &[Stamp(201)]), 1);
}

#[test]
fn in_flight_may_be_either() {
    let h = [w(1, 2, 0, 1), w(99, 101, 0, 1), w(150, PENDING, 0, 1)];
    for n in [1, 99, 150] {
        assert_eq!(count(&h, &[Stamp(n)]), 0, "{n}");
    }
    // 99 completed before 150 was submitted: with 150 in the image elsewhere, 1 is too old.
    let h = [w(1, 2, 0, 1), w(99, 101, 0, 1), w(150, 151, 1, 1)];
    assert_eq!(count(&h, &[Stamp(1), Zero]), 0);
    assert_eq!(count(&h, &[Stamp(99), Stamp(150)]), 0);
    assert_eq!(count(&h, &[Stamp(1), Stamp(150)]), 1, "one thread's order is broken");
}

#[test]
fn a_request_is_in_flight_as_a_whole() {
    let h = [w(1, 2, 0, 2), whole(w(150, 160, 0, 2))];
    assert_eq!(count(&h, &[Stamp(150), Stamp(150)]), 0);
    assert_eq!(count(&h, &[Stamp(1), Stamp(1)]), 0);
    assert_eq!(count(&h, &[Stamp(1), Stamp(150)]), 1);
    assert_eq!(count(&h[1..], &[Zero, Stamp(150)]), 1);
    // Not if it may have been several, or if the other one may have come after it.
    assert_eq!(count(&[h[0], w(150, 160, 0, 2)], &[Stamp(1), Stamp(150)]), 0);
    assert_eq!(count(&[w(1, 151, 0, 2), h[1]], &[Stamp(1), Stamp(150)]), 0);
}

#[test]
fn concurrent_writes_of_a_sector_may_end_either_way() {
    let h = [w(1, 9, 0, 1), w(2, 8, 0, 1), w(3, 4, 0, 1), w(5, 6, 0, 1)];
    assert_eq!(count(&h, &[Stamp(1)]), 0);
    assert_eq!(count(&h, &[Stamp(2)]), 0);
    assert_eq!(count(&h, &[Stamp(5)]), 0);
    assert_eq!(count(&h, &[Stamp(3)]), 1, "5 began after 3 was over");
}

#[test]
fn foreign_damaged_and_invented_content_is_caught() {
    let h = [w(1, 2, 0, 1)];
    assert_eq!(count(&h, &[Seen::Bad(Bad::Checksum)]), 1);
    assert_eq!(count(&h, &[Seen::Bad(Bad::Address(7))]), 1);
    assert_eq!(count(&h, &[Stamp(50)]), 1, "never made here");
    let h = [w(1, 2, 0, 1), w(3, 4, 1, 1)];
    assert_eq!(count(&h, &[Stamp(3), Stamp(3)]), 1);
}

#[test]
fn zeroes_are_placed_by_elimination() {
    let h = [w(1, 2, 0, 1), kind(Kind::Zero, w(10, 11, 0, 1)), w(20, 21, 0, 1)];
    assert_eq!(count(&h, &[Zero]), 1);
    assert_eq!(count(&h[..2], &[Zero]), 0);
    assert_eq!(count(&h[..2], &[Stamp(1)]), 1);
    // A discard that promises nothing leaves either; the write after it does not.
    let h = [w(1, 2, 0, 1), kind(Kind::MaybeZero, w(10, 11, 0, 1)), w(20, 21, 0, 1)];
    assert_eq!(count(&h[..2], &[Zero]), 0);
    assert_eq!(count(&h[..2], &[Stamp(1)]), 0);
    assert_eq!(count(&h, &[Stamp(1)]), 1);
    assert_eq!(count(&h, &[Zero]), 1);
    // A zeroing seen in the image pulls T0 after it: what was over before it must be there.
    let h = [w(1, 2, 0, 2), w(110, 111, 1, 1), kind(Kind::Zero, w(120, 121, 0, 1))];
    assert_eq!(count(&h, &[Zero, Stamp(110)]), 0);
    assert_eq!(count(&h, &[Stamp(1), Stamp(1)]), 0);
    assert_eq!(count(&h, &[Zero, Stamp(1)]), 1);
}

#[test]
fn failed_writes_may_have_happened_and_kill_nothing() {
    let h = [w(1, 2, 0, 1), w(10, PENDING, 0, 1)];
    assert_eq!(count(&h, &[Stamp(1)]), 0);
    assert_eq!(count(&h, &[Stamp(10)]), 0);
}

/// A device on which each write takes place, sector by sector, at instants between its two stamps.
struct World {
    history: Vec<Write>,
    /// (instant, write) of each sector.
    applied: Vec<Vec<(u64, usize)>>,
}

const SECTORS: usize = 12;
const THREADS: usize = 4;

fn world(rng: &mut Rng, writes: usize) -> World {
    let mut history = Vec::new();
    let mut applied = vec![Vec::new(); SECTORS];
    // Instants are spread so that stamps stay unique: thread t uses t modulo 8.
    let mut free = [1u64; THREADS];
    for _ in 0..writes {
        let t = rng.below(THREADS as u64) as usize;
        let submit = (free[t] + rng.below(6)) * 8 + t as u64;
        let complete = (submit / 8 + 1 + rng.below(20)) * 8 + t as u64;
        free[t] = complete / 8 + 1;
        let sector = rng.below(SECTORS as u64) as u32;
        let sectors = (1 + rng.below(4) as u32).min(SECTORS as u32 - sector);
        let kind = if rng.below(5) == 0 { Kind::Zero } else { Kind::Data };
        let whole = kind == Kind::Data && rng.chance(50);
        let instant = |rng: &mut Rng| submit + 1 + rng.below(complete - submit - 1);
        let once = instant(rng);
        for s in sector..sector + sectors {
            let at = if whole { once } else { instant(rng) };
            applied[s as usize].push((at, history.len()));
        }
        history.push(Write { submit, complete, sector, sectors, kind, whole, writer: t as u16 });
    }
    for a in &mut applied {
        a.sort();
    }
    World { history, applied }
}

impl World {
    fn image(&self, t0: u64) -> Vec<Seen> {
        self.applied
            .iter()
            .map(|a| match a.iter().rev().find(|(at, _)| *at <= t0) {
                Some((_, i)) if self.history[*i].kind == Kind::Data => {
                    Stamp(self.history[*i].submit)
                }
                _ => Zero,
            })
            .collect()
    }

    fn end(&self) -> u64 {
        self.history.iter().map(|w| w.complete).max().unwrap_or(0)
    }
}

#[test]
fn every_true_image_passes_pruned_or_not() {
    let mut rng = Rng::new(1);
    for round in 0..3000 {
        let world = world(&mut rng, 60);
        let t0 = 8 + rng.below(world.end());
        let cut = Cut { begin: t0 - rng.below(8), end: t0 + 1 + rng.below(60) };
        let seen = world.image(t0);
        let r = check(&world.history, &seen, cut, 5);
        assert_eq!(r.count, 0, "round {round}: {r:?}");
        let before = cut.begin.saturating_sub(rng.below(50));
        let mut pruned = prune(&world.history, SECTORS, before);
        pruned.extend(world.history.iter().filter(|w| w.complete >= before));
        let r = check(&pruned, &seen, cut, 5);
        assert_eq!(r.count, 0, "round {round}, pruned at {before}: {r:?}");
    }
}

#[test]
fn a_lost_write_is_caught() {
    let mut rng = Rng::new(2);
    let mut tried = 0;
    for _ in 0..3000 {
        let world = world(&mut rng, 60);
        let t0 = 8 + rng.below(world.end());
        let cut = Cut { begin: t0, end: t0 + 1 };
        let mut seen = world.image(t0);
        // Put back, in one sector, data that was overwritten by a later write which completed before the cut.
        let s = rng.below(SECTORS as u64) as usize;
        let by = BySector::new(&world.history, SECTORS);
        let killer = by.killer(s, t0);
        let Some(old) = by.of(s).filter(|w| w.kind == Kind::Data && w.complete < killer).last()
        else {
            continue;
        };
        seen[s] = Stamp(old.submit);
        tried += 1;
        assert!(check(&world.history, &seen, cut, 1).count > 0);
        let mut pruned = prune(&world.history, SECTORS, t0);
        pruned.extend(world.history.iter().filter(|w| w.complete >= t0));
        assert!(check(&pruned, &seen, cut, 1).count > 0, "pruned");
    }
    assert!(tried > 1000, "{tried}");
}

#[test]
fn a_mixture_of_two_instants_is_caught() {
    let mut rng = Rng::new(3);
    let (mut tried, mut caught) = (0, 0);
    for _ in 0..3000 {
        let world = world(&mut rng, 60);
        let early = 8 + rng.below(world.end());
        let late = early + 100 + rng.below(200);
        // The cut of a slow snapshot spans both instants: only the order of what is seen can tell.
        let cut = Cut { begin: early, end: late + 1 };
        let (a, b) = (world.image(early), world.image(late));
        let seen: Vec<Seen> = (0..SECTORS).map(|s| if s % 2 == 0 { a[s] } else { b[s] }).collect();
        // A mixture is wrong for sure when an early sector misses a write that was over before a late one began.
        let newest = (1..SECTORS).step_by(2).filter_map(|s| match seen[s] {
            Stamp(n) => Some(n),
            _ => None,
        });
        let newest = newest.max().unwrap_or(0);
        let by = BySector::new(&world.history, SECTORS);
        let wrong = (0..SECTORS).step_by(2).any(|s| match seen[s] {
            Stamp(n) => by.of(s).any(|w| w.submit == n && w.complete < by.killer(s, newest)),
            _ => false,
        });
        if wrong {
            tried += 1;
            caught += u64::from(check(&world.history, &seen, cut, 1).count > 0);
        }
    }
    assert!(tried > 300, "{tried}");
    assert_eq!(tried, caught);
}

#[test]
fn pruning_bounds_the_history() {
    let mut rng = Rng::new(4);
    let world = world(&mut rng, 2000);
    let kept = prune(&world.history, SECTORS, world.end() + 1);
    assert!(kept.len() < 100, "{}", kept.len());
}
