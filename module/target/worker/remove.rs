// SPDX-License-Identifier: GPL-2.0-only

//! Taking snapshots away: deletion, undoing an unfinished one, and losing images.

use super::Worker;
use crate::device::{add, Guard, Health};
use crate::region::image_is_live;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use presnap_engine::freeze::{DropReason, Event};
use presnap_engine::region::{Scope, SlotKind};

/// Slots looked at in one pass.
const STEP: u32 = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    None,
    /// The record is gone from the root in memory, and must be gone on disk before its slots are
    /// used again; then comes the next step.
    Root(After),
    /// Its slots are being freed, from this one on.
    Free(u32, u32),
    /// An unfinished snapshot's slots are freed, or given to the one before.
    Undo(u32, u32),
}

/// What comes when the root is durable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Free(u32),
    Undo(u32),
}

/// The removal under way, one at a time.
pub(crate) struct Removal {
    step: Step,
    /// The unfinished snapshot to be undone next.
    undo: Option<Step>,
}

impl Removal {
    pub(crate) fn new() -> Self {
        Self { step: Step::None, undo: None }
    }

    pub(crate) fn pending(&self) -> bool {
        self.step != Step::None || self.undo.is_some()
    }

    pub(super) fn root_durable(&mut self) {
        match self.step {
            Step::Root(After::Free(id)) => self.step = Step::Free(id, 0),
            Step::Root(After::Undo(id)) => self.step = Step::Undo(id, 0),
            _ => {}
        }
    }
}

impl Worker {
    /// Deletes a sealed snapshot, the oldest.
    pub(super) fn start_removal(&mut self, id: u32) {
        let removed = self.dev.root.lock().remove(id).is_some();
        // Until here nobody could take a hold: `Control::hold` looks at this.
        self.dev.control.lock().delete = None;
        if !removed {
            return;
        }
        // It may be the base of the next delta and stays that: the delta is what changed since its
        // T0, and a replica that holds it needs no more.
        self.removal.step = Step::Root(After::Free(id));
        self.root.mark();
        self.images_gone();
    }

    pub(super) fn run_removal(&mut self) {
        if self.removal.step == Step::None {
            if let Some(undo) = self.removal.undo.take() {
                self.removal.step = undo;
                self.progress = true;
                if matches!(undo, Step::Root(_)) {
                    self.root.mark();
                }
            }
        }
        match self.removal.step {
            Step::None => {}
            Step::Root(_) => {
                if !self.healthy() {
                    // It never will be; and nothing is written to the region any more.
                    self.removal.root_durable();
                    self.progress = true;
                }
            }
            Step::Free(id, mut cursor) => {
                if self.copies_of(id) {
                    // A guard's copy may be in the table already, and its write still be on the way.
                    return;
                }
                let end = cursor.saturating_add(STEP).min(self.dev.layout().slots);
                while cursor < end {
                    let freed = {
                        let mut slots = self.dev.slots.lock();
                        let mine = slots.entry(cursor).is_some_and(|e| e.snapshot == id);
                        mine && slots.free(cursor).is_some()
                    };
                    if freed {
                        self.index.mark(&self.dev.layout(), cursor, 1, false);
                    }
                    cursor = cursor.saturating_add(1);
                }
                self.progress = true;
                if cursor < self.dev.layout().slots {
                    self.removal.step = Step::Free(id, cursor);
                    return;
                }
                self.removal.step = Step::None;
                // There is room again, and writers may be waiting for it.
                if self.dev.health() == Health::Overflow {
                    self.dev.set_health(Health::Good);
                }
                self.parked.retry = true;
            }
            Step::Undo(id, cursor) => self.undo_step(id, cursor),
        }
    }

    /// An unfinished snapshot is given up after T0: its writes belong to the generation again, and
    /// what it preserved for older images goes to the newest of them.
    pub(super) fn undo(&mut self) {
        let g = &self.dev.generations;
        let mut area = 0;
        while let Some(next) = g.delta().next_area(area) {
            let mask = g.delta().area_mask(next);
            g.dirty().set_area(next, mask);
            area = next.saturating_add(1);
        }
        // What the image before preserves needs no guard; what it lacks, its successor may have.
        area = 0;
        while let Some(next) = g.former().next_area(area) {
            let mask = g.former().area_mask(next);
            g.preserved().set_area(next, mask);
            area = next.saturating_add(1);
        }
        // While it was being sealed its record was in the root, and may be on disk.
        let id = self.record.id;
        let (recorded, image) = {
            let mut root = self.dev.root.lock();
            (root.remove(id).is_some(), image_is_live(&root))
        };
        let image = image || self.must_not_relax();
        self.dev.set_guard(if image { Guard::Image } else { Guard::Off });
        self.dev.set_newest(self.base_id);
        self.op_first = self.record.op_first;
        let known = core::mem::take(&mut self.unsealed);
        if known.full_needed {
            self.dev.full_needed.store(true, Ordering::Relaxed);
        }
        if known.after_crash {
            self.dev.after_crash.store(true, Ordering::Relaxed);
        }
        add(&self.dev.superset_blocks, known.superset_blocks);
        // After a deletion under way, which must free all of its slots.
        self.removal.undo =
            Some(if recorded { Step::Root(After::Undo(id)) } else { Step::Undo(id, 0) });
        self.parked.retry = true;
    }

    fn undo_step(&mut self, id: u32, mut cursor: u32) {
        if self.copies_of(id) || self.manifest.in_flight() {
            return; // They end soon, and may still enter slots into the table, or write to them.
        }
        let image = self.dev.guard() == Guard::Image;
        let heir = if image { self.base_id } else { 0 };
        let end = cursor.saturating_add(STEP).min(self.dev.layout().slots);
        while cursor < end {
            let changed = {
                let mut slots = self.dev.slots.lock();
                match slots.entry(cursor) {
                    // Its writes are part of the generation again, and the dirty map with them.
                    Some(e) if e.snapshot == id && e.kind != SlotKind::Dirty => {
                        // A guard may be copying it for the heir already, into another slot.
                        let needed = heir != 0
                            && e.kind == SlotKind::Data
                            && slots.lookup(heir, e.block).is_none()
                            && !self.jobs.covers(e.block);
                        if !(needed && slots.reassign(cursor, heir).is_ok()) {
                            slots.free(cursor);
                        }
                        true
                    }
                    _ => false,
                }
            };
            if changed {
                self.index.mark(&self.dev.layout(), cursor, 1, heir != 0);
            }
            cursor = cursor.saturating_add(1);
        }
        self.progress = true;
        if cursor < self.dev.layout().slots {
            self.removal.step = Step::Undo(id, cursor);
            return;
        }
        self.removal.step = Step::None;
        self.forget_manifest();
        let g = &self.dev.generations;
        g.delta().clear_all();
        g.former().clear_all();
        g.rewritten.clear_all();
        self.root.mark();
        self.report(Event::Dropped);
    }

    /// Without images there is nothing to guard, once the root on disk says so.
    fn images_gone(&mut self) {
        let image = {
            let root = self.dev.root.lock();
            image_is_live(&root)
        };
        if !image && self.dev.guard() == Guard::Image {
            self.root.mark_relax();
        }
    }

    /// Images cannot be kept any more: what was sealed stays good as deltas.
    pub(super) fn lose_images(&mut self, reason: DropReason) {
        let lost = {
            let mut root = self.dev.root.lock();
            let mut lost = 0u64;
            while let Some(id) = root.iter().find(|r| r.scope == Scope::Image).map(|r| r.id) {
                let Some(record) = root.find_mut(id) else { break };
                record.scope = Scope::Delta;
                lost = lost.saturating_add(1);
            }
            lost
        };
        if lost > 0 {
            self.dev.lose_images();
            pr_warn!(
                "{}: the images of {lost} snapshots are lost: {}\n",
                self.dev.region.number(),
                reason.as_str()
            );
            add(&self.dev.totals.snapshots_dropped, lost);
            self.root.mark();
            self.images_gone();
            self.dev.raise_event();
        }
        if !self.snapshot.phase().after_t0() {
            self.relax_guard();
        }
    }
}
