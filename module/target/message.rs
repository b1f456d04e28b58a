// SPDX-License-Identifier: GPL-2.0-only

//! Messages: what `dmsetup message` can ask of a device.

use crate::device::{Device, Health, Holder, Request};
use crate::presnap::Target;
use crate::words::Words;
use core::fmt::Write;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use presnap_abi::clock::monotonic_ns;
use presnap_abi::dm::{Args, Text};
use presnap_engine::freeze::{FreezeBudget, Phase};
use presnap_engine::message::Message;
use presnap_engine::region::root::MAX_SNAPSHOTS;
use presnap_engine::region::{Scope, SnapshotRecord};

impl Target {
    pub(crate) fn handle_message(&self, args: Args<'_>, out: &mut Text<'_>) -> Result {
        let words = (0..args.len()).filter_map(|i| args.get(i));
        let message = Message::parse(words).map_err(|why| {
            let words = Words::all(args);
            self.md.with_name(|name| pr_warn!("{name}: {why}: {}\n", format_args!("{words}")));
            EINVAL
        })?;
        let device = self.device().ok_or(ENODEV)?;
        let complain = |why: &str, error: Error| {
            self.md.with_name(|name| pr_warn!("{name}: {why}\n"));
            error
        };
        match message {
            Message::Snapshot { scope, within_ms, budget } => {
                let id = device
                    .request(scope, within_ms, budget)
                    .map_err(|(why, e)| complain(why, e))?;
                write!(out, "{id}").map_err(|_| ENOSPC)
            }
            Message::State(id) => device.write_state(id, out).map_err(|_| ENOSPC),
            Message::List => device.write_list(out).map_err(|_| ENOSPC),
            Message::Delete(id) => device.delete(id).map_err(|(why, e)| complain(why, e)),
            Message::Hold(id) => {
                if !device.control.lock().hold(id, Holder::Message) {
                    return Err(complain("it is being deleted, or too many are held", EBUSY));
                }
                if device.sealed(id).is_none() {
                    device.control.lock().release(id, Holder::Message);
                    return Err(complain("there is no such snapshot", ENOENT));
                }
                Ok(())
            }
            Message::Release(id) => match device.control.lock().release(id, Holder::Message) {
                true => Ok(()),
                false => Err(complain("the snapshot is not held", ENOENT)),
            },
            Message::Abort => {
                {
                    let mut control = device.control.lock();
                    control.abort = control.unfinished();
                }
                device.wake.wake();
                Ok(())
            }
            Message::Grow => {
                let (before, after) = device.grow().map_err(|(why, e)| complain(why, e))?;
                write!(out, "{before} {after}").map_err(|_| ENOSPC)
            }
            // Every record is durable before anybody is told of it; there is nothing to write.
            Message::Sync => Ok(()),
        }
    }
}

impl Device {
    /// Asks for a snapshot; its number.
    fn request(
        &self,
        scope: Option<Scope>,
        within_ms: u64,
        budget: Option<FreezeBudget>,
    ) -> Result<u32, (&'static str, Error)> {
        if self.health() == Health::Invalid {
            return Err(("the region has failed; open the device again", EIO));
        }
        if self.root.lock().len() >= MAX_SNAPSHOTS {
            return Err(("the snapshot table is full: delete a snapshot first", ENOSPC));
        }
        let now = monotonic_ns();
        let mut control = self.control.lock();
        if control.unfinished().is_some() {
            return Err(("a snapshot is under way", EBUSY));
        }
        let request = Request {
            id: self.coming(),
            scope: scope.unwrap_or(self.knobs.scope()),
            t0_ns: now.saturating_add(within_ms.saturating_mul(1_000_000)),
            budget: budget.unwrap_or(self.knobs.freeze_budget()),
        };
        control.request = Some(request);
        drop(control);
        self.wake.wake();
        Ok(request.id)
    }

    /// Asks for the deletion of a snapshot.
    fn delete(&self, id: u32) -> Result<(), (&'static str, Error)> {
        if self.sealed(id).is_none() {
            return Err(("there is no such snapshot", ENOENT));
        }
        if self.root.lock().oldest().is_some_and(|r| r.id != id) {
            return Err(("only the oldest snapshot can be deleted", EINVAL));
        }
        let mut control = self.control.lock();
        if control.held(id) {
            return Err(("the snapshot is held: it is being sent or read", EBUSY));
        }
        if control.delete.is_some_and(|other| other != id) {
            return Err(("another snapshot is being deleted", EBUSY));
        }
        control.delete = Some(id);
        drop(control);
        self.wake.wake();
        Ok(())
    }

    /// `<id> <state> [<key>=<value>]...`
    fn write_state(&self, id: u32, out: &mut Text<'_>) -> core::fmt::Result {
        {
            let control = self.control.lock();
            if control.request.is_some_and(|r| r.id == id) {
                return write!(out, "{id} pending");
            }
            if let Some((request, phase, record)) = &control.active {
                if request.id == id {
                    write!(out, "{id} {}", phase.as_str())?;
                    return if phase.after_t0() { write_statistics(record, out) } else { Ok(()) };
                }
            }
            if let Some(reason) = control.dropped(id) {
                return write!(out, "{id} dropped:{}", reason.as_str());
            }
        }
        match self.root.lock().find(id) {
            Some(record) => {
                write!(out, "{id} sealed")?;
                write_statistics(record, out)
            }
            None => write!(out, "{id} unknown"),
        }
    }

    fn write_list(&self, out: &mut Text<'_>) -> core::fmt::Result {
        let control = self.control.lock();
        let unfinished = control.unfinished();
        let root = self.root.lock();
        for r in root.iter().filter(|r| unfinished != Some(r.id)) {
            if !out.is_empty() {
                writeln!(out)?;
            }
            write!(
                out,
                "{} {} {} {} {} {} {} {}",
                r.id,
                r.state.as_str(),
                r.scope.as_str(),
                r.base_id,
                r.op_first,
                r.op_last,
                r.delta_blocks,
                r.t0_realtime_ns
            )?;
        }
        if out.is_empty() {
            write!(out, "-")?;
        }
        Ok(())
    }

    /// The line of `dmsetup status`.
    pub(crate) fn write_info(&self, out: &mut dyn Write) -> core::fmt::Result {
        let (used, total) = {
            let slots = self.slots.lock();
            (slots.used(), slots.total())
        };
        let (active, count, newest) = {
            // Both are held for moments only, never across I/O.
            let control = self.control.lock();
            let asked = control.request.map(|r| (r.id, Phase::Idle));
            let active = asked.or(control.active.map(|a| (a.0.id, a.1)));
            let root = self.root.lock();
            let sealed = root.iter().filter(|r| active.is_none_or(|(id, _)| id != r.id));
            let (count, newest) = sealed.fold((0u32, 0), |(n, _), r| (n.saturating_add(1), r.id));
            (active, count, newest)
        };
        let op = self.op.load(Ordering::Relaxed);
        let dirty = self.generations.dirty().count();
        write!(out, "{used}/{total} {op} {dirty} {count} {newest} ")?;
        match active {
            Some((id, phase)) => write!(out, "{id}:{} ", phase.as_str())?,
            None => write!(out, "- ")?,
        }
        let health = self.health();
        write!(out, "{} ", if health == Health::Invalid { "Invalid" } else { "rw" })?;
        let mut separator = "";
        let superset = self.superset_blocks.load(Ordering::Relaxed);
        if self.full_needed.load(Ordering::Relaxed) {
            write!(out, "full-needed")?;
            separator = ",";
        } else if superset > 0 {
            write!(out, "superset:{superset}")?;
            separator = ",";
        }
        let flags = [
            (self.low_water.load(Ordering::Relaxed), "low-water"),
            (health == Health::Overflow, "overflow"),
        ];
        for (_, flag) in flags.into_iter().filter(|(is, _)| *is) {
            write!(out, "{separator}{flag}")?;
            separator = ",";
        }
        if separator.is_empty() {
            write!(out, "-")?;
        }
        Ok(())
    }
}

fn write_statistics(r: &SnapshotRecord, out: &mut Text<'_>) -> core::fmt::Result {
    write!(
        out,
        " scope={} base={} op_first={} op_last={} t0_realtime_ns={} freeze_us={} \
         inflight_wait_us={} stale_blocks={} delta_blocks={} staged_valid_blocks={} \
         final_copy_blocks={} guarded_blocks={} drained_blocks={} copied_blocks_total={} \
         guard_stalls={} mirrored_writes={} staged_clean_blocks={} hits={} misses={} wasted={} \
         seal_us={}",
        r.scope.as_str(),
        r.base_id,
        r.op_first,
        r.op_last,
        r.t0_realtime_ns,
        r.freeze_ns / 1000,
        r.inflight_wait_ns / 1000,
        r.stale_blocks,
        r.delta_blocks,
        r.staged_valid_blocks,
        r.final_copy_blocks,
        r.guarded_blocks,
        r.drained_blocks,
        r.copied_blocks_total,
        r.guard_stalls,
        r.mirrored_writes,
        r.staged_clean_blocks,
        r.hits,
        r.misses,
        r.wasted,
        r.seal_ns / 1000
    )
}
