// SPDX-License-Identifier: GPL-2.0-only

//! A machine with an origin, a region and a presnap device on them, its user, and the oracle who watches.

use crate::config::{Config, Trouble};
use crate::crash::PowerLoss;
use crate::device::{Device, Health};
use crate::history::History;
use crate::inspect::Region;
use crate::oracle::{Oracle, Told};
use crate::presnap::Target;
use crate::run::reached;
use fastrand::Rng;
use kernel::sync::Arc;
use presnap_abi::bio::{Op, STS_OK};
use presnap_abi::dm::DeviceNumber;
use presnap_abi::sysfs;
use presnap_abi::table::Table;
use presnap_machine::blocks::{Blocks, BLOCK, BLOCK_SECTORS};
use presnap_machine::disk::{self, Disk, Faults, Request};
use presnap_machine::{note, Machine, User};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// The disks.
pub(crate) const ORIGIN: usize = 0;
pub(crate) const REGION: usize = 1;

/// Until then everything must have come to rest: nothing takes so long.
const REST_NS: u64 = 100_000_000_000;

/// What is left after a power loss, or at the start.
#[derive(Clone)]
pub(crate) struct Remains {
    pub(crate) now: u64,
    pub(crate) origin: Blocks,
    pub(crate) region: Blocks,
    pub(crate) oracle: Oracle,
    /// What had been told until then.
    pub(crate) told: Told,
}

/// See the module.
pub(crate) struct World {
    pub(crate) machine: Rc<Machine>,
    pub(crate) config: Rc<Config>,
    pub(crate) number: DeviceNumber,
    pub(crate) table: RefCell<Option<Table<Target>>>,
    pub(crate) device: RefCell<Option<Arc<Device>>>,
    pub(crate) oracle: RefCell<Oracle>,
    pub(crate) told: RefCell<Told>,
    /// How often images had been lost by then.
    lost_before: Cell<u64>,
    pub(crate) history: History,
    /// Requests of the user that have not ended.
    pub(crate) outstanding: Rc<Cell<u32>>,
    /// Blocks of the origin that the table maps.
    blocks: Cell<u64>,
    newest: Cell<u32>,
    /// Chooses when power fails, and how.
    pub(crate) fate: RefCell<Rng>,
    /// Power losses that are to be looked at.
    pub(crate) losses: RefCell<Vec<PowerLoss>>,
    /// Power fails before one event in so many; 0 for never.
    pub(crate) crash_one_in: Cell<u32>,
    /// How many power losses led here.
    pub(crate) depth: u32,
}

impl World {
    /// The first world of a seed.
    pub(crate) fn fresh(config: Rc<Config>, rng: &mut Rng) -> Remains {
        let mut origin = Blocks::zeroed(config.origin_blocks);
        for block in (0..config.origin_blocks).filter(|block| block % 3 != 0) {
            origin.write(block * BLOCK_SECTORS, &[block as u8 ^ 0x55; BLOCK]);
        }
        let uuid = rng.u128(..).to_le_bytes();
        let sectors = config.origin_blocks * BLOCK_SECTORS;
        let region = crate::inspect::format(config.region_blocks, sectors, uuid);
        let mut oracle = Oracle::new(config.origin_blocks);
        oracle.writes_fail = config.trouble == Trouble::OriginWrites;
        Remains { now: 1_000_000_000, origin, region, oracle, told: Told::default() }
    }

    /// Opens the device on what is left.
    pub(crate) fn open(
        remains: &Remains,
        config: Rc<Config>,
        seed: u64,
        depth: u32,
        crash_one_in: u32,
    ) -> Result<Rc<Self>, String> {
        let mut fate = Rng::with_seed(seed);
        let disks = vec![
            Disk::new(remains.origin.clone(), config.origin_cached, config.origin_speed),
            Disk::new(remains.region.clone(), config.region_cached, config.region_speed),
        ];
        let machine = Machine::new(fate.u64(..), remains.now, config.pace, disks);
        let _entered = machine.enter();
        let world = Rc::new(Self {
            machine: machine.clone(),
            number: DeviceNumber::of_mapped(0),
            table: RefCell::new(None),
            device: RefCell::new(None),
            oracle: RefCell::new(remains.oracle.clone()),
            told: RefCell::new(remains.told.clone()),
            lost_before: Cell::new(0),
            history: History::new(Rng::with_seed(fate.u64(..)), &config),
            outstanding: Rc::default(),
            blocks: Cell::new(0),
            newest: Cell::new(0),
            fate: RefCell::new(fate),
            losses: RefCell::default(),
            crash_one_in: Cell::new(crash_one_in),
            depth,
            config,
        });
        machine.set_user(Some(world.clone()));
        crate::registry::init();
        world.load()?;
        world.recovered()?;
        Ok(world)
    }

    /// Blocks of the origin that the table maps.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    /// The blocks that the region is for, as `presnap open` finds it.
    fn blocks_of_region(&self) -> Result<u64, String> {
        let region = self.machine.disk(REGION, |disk| disk.current().clone());
        Ok(Region::read(&region)?.origin_blocks())
    }

    fn load_table(&self, blocks: u64) -> Result<Table<Target>, String> {
        let [origin, region] = [ORIGIN, REGION].map(DeviceNumber::of_disk);
        let on_error = if self.config.fail_writes { " 2 on_error fail-writes" } else { "" };
        let words = format!("{origin} {region}{on_error}");
        Table::<Target>::load(self.number, blocks * BLOCK_SECTORS, &words)
            .map_err(|e| format!("refused: {} ({:?})", e.why, e.error))
    }

    /// Loads the table and lets it live.
    fn load(&self) -> Result<(), String> {
        let blocks = self.blocks_of_region()?;
        let there = self.machine.disk(ORIGIN, |disk| disk.current().len());
        assert!(there >= blocks, "the region is for a larger origin than there is");
        if there > blocks {
            // Nobody takes it for one of that size.
            let refused = self.load_table(there).err().ok_or("a larger origin is taken")?;
            reached("openings with another length refused", 1);
            note!("{refused}");
        }
        let table = self.load_table(blocks)?;
        table.resume().map_err(|e| format!("not resumed: {e:?}"))?;
        self.blocks.set(blocks);
        let device = table.target().device().ok_or("resumed without a device")?.clone();
        self.newest.set(device.newest());
        *self.device.borrow_mut() = Some(device);
        *self.table.borrow_mut() = Some(table);
        for (name, value) in &self.config.knobs {
            self.set_knob(name, value);
        }
        self.set_knob("scope", if self.config.image { "image" } else { "delta" });
        Ok(())
    }

    pub(crate) fn set_knob(&self, name: &str, value: &str) {
        sysfs::write(self.number, &format!("presnap/{name}"), value).expect("a knob takes it");
    }

    /// Compares what is there after a power loss, or a close, with what must be.
    fn recovered(&self) -> Result<(), String> {
        let before = self.told.borrow().sealed.clone();
        self.ask();
        let present = self.told.borrow().sealed.clone();
        let mut oracle = self.oracle.borrow_mut();
        if let Some(id) = before.difference(&present).find(|id| !oracle.deleting.contains(id)) {
            return Err(format!("snapshot {id} is not there any more"));
        }
        let base = self.device.borrow().as_ref().map_or(0, |d| d.root.lock().header.base_id);
        oracle.recovered(&present, base);
        let op = self.op();
        if op < oracle.op {
            return Err(format!("operation numbers go back from {} to {op}", oracle.op));
        }
        Ok(())
    }

    fn op(&self) -> u64 {
        let read = sysfs::read(self.number, "presnap/op").ok();
        read.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// Sends a message.
    pub(crate) fn message(&self, words: &str) -> Result<String, String> {
        let table = self.table.borrow();
        let table = table.as_ref().ok_or("no table")?;
        let answer = table.message(words).map_err(|e| format!("{e:?}"));
        note!("message {words}: {answer:?}");
        answer
    }

    /// Asks what presnap has to tell.
    pub(crate) fn ask(&self) {
        if self.table.borrow().is_none() {
            if self.health() == Health::Invalid || self.images_lost() > self.lost_before.get() {
                // Lost while it was being closed, or just before: an event said so, and there is nobody to ask.
                self.told.borrow_mut().images.clear();
            }
            return;
        }
        self.lost_before.set(self.images_lost());
        let list = self.message("list").expect("list");
        let mut told = Told::default();
        for line in list.lines().filter(|line| *line != "-") {
            let words: Vec<&str> = line.split(' ').collect();
            let id: u32 = words[0].parse().expect("a number");
            let state = self.message(&format!("state {id}")).expect("state");
            let sealed = state.split(' ').nth(1) == Some("sealed");
            assert!(sealed && words[1] == "sealed", "listed as {line}, and the state is {state}");
            told.sealed.insert(id);
            if words[2] == "image" {
                told.images.insert(id);
            }
        }
        self.oracle.borrow_mut().sealed.extend(&told.sealed);
        *self.told.borrow_mut() = told;
    }

    /// Whether nothing is under way.
    fn rests(&self) -> bool {
        let idle = self.device.borrow().as_ref().is_none_or(|device| {
            let control = device.control.lock();
            control.request.is_none() && control.active.is_none() && control.delete.is_none()
        });
        let disks = (0..self.machine.disks())
            .all(|number| self.machine.disk(number, |disk| disk.in_flight() == 0));
        idle && disks && self.outstanding.get() == 0 && self.machine.tasks_asleep()
    }

    /// Goes on until nothing is under way, and has not been for a while.
    pub(crate) fn rest(&self) -> Result<(), String> {
        let end = self.machine.now() + REST_NS;
        let mut since = None;
        loop {
            self.machine.step(end);
            crate::crash::look_at_losses(self)?;
            let now = self.machine.now();
            if now >= end {
                let status = self.status();
                let outstanding = self.outstanding.get();
                return Err(format!("does not come to rest: {outstanding} requests, {status}"));
            }
            if !self.rests() {
                since = None;
            } else if now > *since.get_or_insert(now) + 40_000_000 {
                return Ok(());
            }
        }
    }

    pub(crate) fn status(&self) -> String {
        let table = self.table.borrow();
        table.as_ref().map_or_else(String::new, |t| t.status(presnap_abi::dm::StatusKind::Info))
    }

    /// How often images were lost.
    fn images_lost(&self) -> u64 {
        self.device.borrow().as_ref().map_or(0, |device| device.images_lost())
    }

    pub(crate) fn health(&self) -> Health {
        self.device.borrow().as_ref().map_or(Health::Good, |device| device.health())
    }

    /// Lets the user act until it has done what it wants.
    pub(crate) fn live(&self, actions: u32) -> Result<(), String> {
        let _entered = self.machine.enter();
        self.history.begin(actions);
        self.machine.call_user_at(self.machine.now());
        while self.history.acts() {
            self.machine.step(u64::MAX);
            crate::crash::look_at_losses(self)?;
            if self.history.wants_reload() {
                self.reload()?;
            }
        }
        Ok(())
    }

    /// Waits for the end of all requests, but not for what presnap does by itself.
    fn drain_requests(&self) -> Result<(), String> {
        let end = self.machine.now() + REST_NS;
        while self.outstanding.get() > 0 {
            self.machine.step(end);
            crate::crash::look_at_losses(self)?;
            if self.machine.now() >= end {
                return Err(format!("a request does not end: {}", self.status()));
            }
        }
        Ok(())
    }

    /// Another table takes the place of the live one, as `dmsetup reload` and `resume` do.
    fn reload(&self) -> Result<(), String> {
        let left = self.history.pause();
        self.drain_requests()?;
        let now = self.blocks();
        let mut there = self.machine.disk(ORIGIN, |disk| disk.current().len());
        if there > now && self.health() == Health::Invalid {
            assert!(
                self.load_table(there).is_err(),
                "the origin grows though the region has failed"
            );
            there = now;
        }
        assert!(self.load_table(now - 1).is_err(), "a smaller origin is taken");
        if there > now {
            self.history.close_views(self, || self.load_table(there).is_err());
        }
        let before = self.table.take();
        let table = self.load_table(there)?;
        if let Some(before) = before {
            if there > now {
                // Asked for just now, too, or under way: it is dropped.
                self.oracle.borrow_mut().origin_grows(now, there);
            }
            before.suspend();
            table.resume().map_err(|e| format!("not resumed: {e:?}"))?;
            drop(before);
        }
        if there > now {
            reached("origins grown", 1);
            self.blocks.set(there);
            let device = table.target().device().ok_or("resumed without a device")?.clone();
            self.newest.set(device.newest());
            *self.device.borrow_mut() = Some(device);
        }
        *self.table.borrow_mut() = Some(table);
        reached("tables reloaded", 1);
        self.history.begin(left);
        self.machine.call_user_at(self.machine.now());
        Ok(())
    }

    /// Waits for the end of all that the user began.
    pub(crate) fn settle(&self) -> Result<(), String> {
        let _entered = self.machine.enter();
        self.history.let_go(self);
        self.set_knob("trigger_ops", "0");
        self.rest()
    }

    /// Checks the region and all images of a device at rest.
    pub(crate) fn check(&self) -> Result<(), String> {
        let _entered = self.machine.enter();
        self.ask();
        {
            let region = self.machine.disk(REGION, |disk| disk.current().clone());
            let region = Region::read(&region)?;
            let mut oracle = self.oracle.borrow_mut();
            if self.health() != Health::Invalid {
                let present: BTreeSet<u32> = region.root.iter().map(|r| r.id).collect();
                if let Some(id) = oracle.deleting.iter().find(|id| present.contains(id)) {
                    return Err(format!("snapshot {id} was not deleted"));
                }
                let gone: Vec<u32> = oracle.deleting.iter().copied().collect();
                oracle.gone.extend(gone);
                oracle.deleting.clear();
            }
            oracle.check(&region, &self.told.borrow())?;
        }
        self.check_images(usize::MAX)
    }

    /// What differs from the base of the next delta is known to have changed.
    pub(crate) fn check_changes(&self) -> Result<(), String> {
        let _entered = self.machine.enter();
        let Some(device) = self.device.borrow().clone() else { return Ok(()) };
        let base = device.root.lock().header.base_id;
        let relaxed = core::sync::atomic::Ordering::Relaxed;
        if base == 0 || device.full_needed.load(relaxed) || device.health() == Health::Invalid {
            return Ok(());
        }
        if self.config.trouble == Trouble::OriginWrites {
            // Of a write that failed before T0, a part may come to light after the power loss.
            return Ok(());
        }
        reached("openings that know the changes", 1);
        let blocks = self.blocks();
        let origin = self.machine.disk(ORIGIN, |disk| disk.current().truncated(blocks));
        let dirty = device.generations.dirty();
        self.oracle.borrow().check_changes(base, &origin, |block| dirty.test(block))
    }

    /// Reads images, through the target for them: so many of those there are.
    pub(crate) fn check_images(&self, most: usize) -> Result<(), String> {
        let _entered = self.machine.enter();
        let mut images: Vec<u32> = self.told.borrow().images.iter().copied().collect();
        images.retain(|id| !self.oracle.borrow().tainted.contains(id));
        while images.len() > most {
            let n = self.fate.borrow_mut().usize(..images.len());
            images.swap_remove(n);
        }
        for id in images {
            let taken = self.oracle.borrow().taken.get(&id).cloned();
            let taken = taken.ok_or(format!("image {id} was never taken"))?;
            let words = format!("{} {id}", self.number);
            let sectors = taken.image.sectors();
            let number = DeviceNumber::of_mapped(1);
            let view = Table::<crate::image::Image>::load(number, sectors, &words)
                .map_err(|e| format!("image {id} is refused: {}", e.why))?;
            view.resume().map_err(|e| format!("image {id} is not resumed: {e:?}"))?;
            let read: Rc<RefCell<Vec<Option<Vec<u8>>>>> = Rc::default();
            let piece = 32 * BLOCK_SECTORS;
            for (n, sector) in (0..sectors).step_by(piece as usize).enumerate() {
                read.borrow_mut().push(None);
                let place = read.clone();
                let length = piece.min(sectors - sector) as u32;
                view.submit(Op::Read, sector, length, Vec::new(), false, move |ended| {
                    place.borrow_mut()[n] =
                        Some(if ended.status == STS_OK { ended.data } else { Vec::new() });
                });
            }
            self.machine.wait_for(|| read.borrow().iter().all(Option::is_some));
            view.suspend();
            drop(view);
            let found: Vec<Vec<u8>> = read.take().into_iter().flatten().collect();
            if found.iter().any(Vec::is_empty) {
                if self.config.trouble.of_region() || self.config.trouble == Trouble::OriginReads {
                    continue;
                }
                return Err(format!("image {id} cannot be read"));
            }
            let contents = found.iter().flat_map(|piece| piece.chunks_exact(BLOCK));
            for (block, content) in (0..).zip(contents) {
                if taken.image.block(block)[..] != *content {
                    let whence = self.whence(block, content);
                    return Err(format!(
                        "block {block} of image {id} is not as it was at T0: {whence}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Where else this content of a block is.
    fn whence(&self, block: u64, content: &[u8]) -> String {
        let origin = self.machine.disk(ORIGIN, |disk| disk.current().block(block)[..] == *content);
        let oracle = self.oracle.borrow();
        let same = |(_, t): &(&u32, &Rc<crate::oracle::Taken>)| {
            block < t.image.len() && t.image.block(block)[..] == *content
        };
        let images: Vec<u32> = oracle.taken.iter().filter(same).map(|(id, _)| *id).collect();
        let region = self.machine.disk(REGION, |disk| disk.current().clone());
        let entries: Vec<String> = Region::read(&region).map_or_else(
            |e| vec![e],
            |r| {
                let of_block = r.index.iter().filter(|(_, e)| e.block == block);
                of_block.map(|(slot, e)| format!("slot {slot}: {e:x?}")).collect()
            },
        );
        format!("the origin's: {origin}, that of images {images:?}; index: {entries:?}")
    }

    /// Closes the device in order; in a hurry, whatever presnap is about.
    pub(crate) fn close(&self, hurry: bool) -> Result<(), String> {
        let _entered = self.machine.enter();
        self.history.let_go(self);
        if hurry {
            self.drain_requests()?;
        } else {
            self.rest()?;
        }
        self.ask();
        reached("orderly closes", 1);
        let table = self.table.take();
        if let Some(table) = &table {
            table.suspend();
        }
        // The worker ends with it. Power may fail then, too.
        drop(table);
        self.notice_t0();
        self.ask();
        self.count();
        *self.device.borrow_mut() = None;
        crate::crash::look_at_losses(self)?;
        let region = self.machine.disk(REGION, |disk| disk.current().clone());
        let region = Region::read(&region)?;
        let oracle = self.oracle.borrow();
        oracle.check(&region, &self.told.borrow())?;
        if !self.config.trouble.of_region() {
            oracle.check_closed(&region)?;
        }
        Ok(())
    }

    /// What is there now, if the power stays on.
    pub(crate) fn remains(&self) -> Remains {
        let [origin, region] =
            [ORIGIN, REGION].map(|n| self.machine.disk(n, |disk| disk.current().clone()));
        Remains {
            now: self.machine.now() + 1_000_000,
            origin,
            region,
            oracle: self.oracle.borrow().clone(),
            told: self.told.borrow().clone(),
        }
    }

    /// Lets go of everything.
    pub(crate) fn end(&self) {
        let _entered = self.machine.enter();
        self.count();
        self.history.drop_views();
        self.machine.set_user(None);
        self.table.take();
        self.device.take();
    }

    /// Notes how much was done.
    fn count(&self) {
        let Some(device) = self.device.borrow().clone() else { return };
        let t = &device.totals;
        let totals = [
            ("snapshots sealed", &t.snapshots),
            ("snapshots dropped, images lost", &t.snapshots_dropped),
            ("blocks staged", &t.precopied_blocks),
            ("blocks staged in vain", &t.stale),
            ("blocks staged and valid", &t.staged_valid_blocks),
            ("blocks copied in the freeze", &t.final_copy_blocks),
            ("blocks drained", &t.drained_blocks),
            ("blocks guarded", &t.guarded_blocks),
            ("writes held by the guard", &t.guard_stalls),
            ("writes mirrored", &t.mirrored_writes),
            ("writes that lost patience", &t.timeouts),
            ("I/O errors", &t.io_errors),
        ];
        for (what, total) in totals {
            reached(what, total.load(core::sync::atomic::Ordering::Relaxed));
        }
        reached("regions full", u64::from(device.health() == Health::Overflow));
        reached("regions failed", u64::from(device.health() == Health::Invalid));
    }

    /// Faults begin, or end.
    pub(crate) fn set_trouble(&self, on: bool) {
        let one = |wanted| if on && self.config.trouble == wanted { 60 } else { 0 };
        let origin = Faults {
            reads: one(Trouble::OriginReads),
            writes: one(Trouble::OriginWrites),
            dead: false,
        };
        let region = Faults {
            reads: one(Trouble::RegionReads),
            writes: one(Trouble::RegionWrites),
            dead: false,
        };
        self.machine.disk_mut(ORIGIN, |disk, _| disk.faults = origin);
        self.machine.disk_mut(REGION, |disk, _| disk.faults = region);
    }

    /// The instant T0 is when the newest snapshot changes.
    fn notice_t0(&self) {
        let Some(device) = self.device.borrow().clone() else { return };
        let newest = device.newest();
        if device.health() == Health::Invalid {
            let mut oracle = self.oracle.borrow_mut();
            let all: Vec<u32> = oracle.taken.keys().copied().collect();
            oracle.tainted.extend(all);
            oracle.region_failed();
        }
        {
            let mut oracle = self.oracle.borrow_mut();
            oracle.op = oracle.op.max(device.op.load(core::sync::atomic::Ordering::Relaxed));
        }
        if newest == self.newest.get() {
            return;
        }
        self.newest.set(newest);
        if newest == 0 || self.oracle.borrow().taken.contains_key(&newest) {
            return;
        }
        note!("T0 of snapshot {newest}");
        let (writes, image) = self.machine.disk(ORIGIN, |disk| {
            (disk.writes_in_flight(), disk.current().truncated(self.blocks()))
        });
        assert_eq!(writes, 0, "T0 of snapshot {newest} with writes in flight");
        self.oracle.borrow_mut().t0(newest, image);
    }
}

impl User for World {
    fn observe(&self) {
        self.notice_t0();
        let one_in = self.crash_one_in.get() * crate::crash::rarity();
        if one_in > 0 && self.fate.borrow_mut().u32(..one_in) == 0 {
            let loss = PowerLoss::now(self);
            self.losses.borrow_mut().push(loss);
        }
    }

    fn submitting(&self, number: usize, request: &Request) {
        self.notice_t0();
        if number == ORIGIN && matches!(request.op, disk::Op::Write(_)) {
            self.oracle.borrow_mut().written(request.sector, request.sectors);
        }
    }

    fn act(&self) {
        self.history.act(self);
    }
}
