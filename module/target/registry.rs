// SPDX-License-Identifier: GPL-2.0-only

//! The open devices, by region: a table that is loaded while another one is live shares its device.

use crate::device::{Before, Device, Guard, Health};
use crate::region::{self, image_is_live, Words};
use crate::worker::seat::Seat;
use crate::worker::{Found, Worker};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex, SetOnce};
use presnap_abi::dm::{self, BlockDevice, Constructor, DeviceNumber, MappedDevice};
use presnap_abi::memory::NoIo;
use presnap_abi::thread::{Thread, Wake};
use presnap_engine::table::{Features, OnError};

struct Entry {
    /// No other entry had or has it.
    key: u64,
    device: Arc<Device>,
    /// Mapped devices whose tables use it, one for each table.
    users: KVec<DeviceNumber>,
    /// Stopped by being dropped.
    worker: Option<Thread>,
}

presnap_abi::global_mutex!(mod lock, static ENTRIES: Mutex<KVec<Entry>> = KVec::new());

static NEXT_KEY: AtomicU64 = AtomicU64::new(0);

/// Prepares the list.
pub(crate) fn init() {
    lock::init();
}

/// Frees the memory of an empty list: a static is never dropped, not even with the module.
fn trim(entries: &mut KVec<Entry>) {
    if entries.is_empty() {
        *entries = KVec::new();
    }
}

/// One table's use of a device. Dropping the last one closes the region.
pub(crate) struct User {
    key: u64,
    /// None yet if the origin has to grow first.
    device: SetOnce<Arc<Device>>,
    larger: Option<Larger>,
    md: Arc<MappedDevice>,
    features: Features,
}

/// A table for a larger origin than the region is for: when it is about to be live the origin grows.
struct Larger {
    sectors: u64,
    /// For the worker of the device that there will be.
    seat: Pin<KBox<Mutex<Option<Seat>>>>,
}

impl User {
    fn new(key: u64, device: Arc<Device>, md: &Arc<MappedDevice>, features: &Features) -> Self {
        let place = SetOnce::new();
        place.populate(device);
        Self { key, device: place, larger: None, md: md.clone(), features: *features }
    }

    /// The device; none if the table is for a larger origin and was not live yet.
    pub(crate) fn device(&self) -> Option<&Arc<Device>> {
        self.device.as_ref()
    }

    /// The table is about to be live; the one before is suspended. Sleeps, and must not wait for I/O of this device.
    pub(crate) fn preresume(&self) -> Result {
        let Some(larger) = &self.larger else { return Ok(()) };
        if self.device().is_some() {
            return Ok(());
        }
        let mut words = Words::default();
        let grown = self.grow_origin(larger, &mut words);
        if grown.is_err() {
            let why = words.as_str();
            self.md.with_name(|name| pr_err!("{name}: the origin does not grow: {why}\n"));
        }
        grown
    }

    /// Closes the region, makes it one of the larger origin, and opens it again.
    fn grow_origin(&self, larger: &Larger, words: &mut Words) -> Result {
        let mut entries = lock::ENTRIES.lock();
        let at = entries.iter().position(|e| e.key == self.key);
        let Some(entry) = at.and_then(|i| entries.get_mut(i)) else {
            words.error(c"The region is not open: load the table anew");
            return Err(ENODEV);
        };
        let old = entry.device.clone();
        check_growth(&old, words)?;
        let Some(seat) = larger.seat.lock().take() else {
            words.error(c"It was tried: load the table anew");
            return Err(ENODEV);
        };
        let mut before = Before::empty()?;
        // Closes the region in order.
        drop(entry.worker.take());
        before.take(&old);
        let opened = region::grow_origin(words, old.region, larger.sectors).and_then(|from| {
            let started = start(words, &old, larger.sectors, &self.features, from, &seat);
            Ok((started?, Ok(())))
        });
        // As it was, if that can be: the table before may be loaded again.
        let opened = opened.or_else(|e| {
            let (words, none) = (&mut Words::default(), Features::default());
            Ok((start(words, &old, old.origin_sectors, &none, 0, &seat)?, Err(e)))
        });
        match opened {
            Ok(((device, worker), grown)) => {
                before.hand_over(&device);
                entry.worker = Some(seat.take(worker));
                entry.device = device.clone();
                if grown.is_ok() {
                    self.device.populate(device);
                }
                grown
            }
            Err(e) => {
                if let Some(i) = at {
                    drop(entries.remove(i));
                }
                Err(e)
            }
        }
    }

    /// The table is live: its features count, and events go to its mapped device.
    pub(crate) fn resumed(&self, md: &Arc<MappedDevice>) {
        let Some(device) = self.device() else { return };
        if let Some(scope) = self.features.scope {
            device.knobs.set_scope(scope);
        }
        let fail = self.features.on_error == Some(OnError::FailWrites);
        device.fail_writes.store(fail, Ordering::Relaxed);
        device.low_water_armed.store(true, Ordering::Relaxed);
        *device.events.lock() = Some(md.clone());
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(device) = self.device() {
            let mut events = device.events.lock();
            if events.as_ref().is_some_and(|md| Arc::ptr_eq(md, &self.md)) {
                *events = None;
            }
        }
        let mut entries = lock::ENTRIES.lock();
        let Some(i) = entries.iter().position(|e| e.key == self.key) else {
            return;
        };
        let last = entries.get_mut(i).is_some_and(|entry| {
            if let Some(k) = entry.users.iter().position(|&n| n == self.md.number()) {
                let _ = entry.users.remove(k);
            }
            entry.users.is_empty()
        });
        if last {
            // Nobody tells the views of what happens to the origin from here on.
            if let Some(entry) = entries.get(i) {
                entry.device.lose_images();
            }
            // Stops the worker, which closes the region in order, while the devices are still open.
            // The list stays locked: nobody may open the region before that.
            drop(entries.remove(i));
            trim(&mut entries);
        }
    }
}

/// Whether the origin of a device may grow.
fn check_growth(device: &Device, words: &mut Words) -> Result {
    if device.health() == Health::Invalid {
        words.error(c"The region has failed: the origin cannot grow");
        return Err(EIO);
    }
    if device.views.load(Ordering::SeqCst) > 0 {
        words.error(c"Close the views first: the origin cannot grow under them");
        return Err(EBUSY);
    }
    Ok(())
}

/// Opens a region again and makes the worker. Sleeps.
#[inline(never)]
fn start(
    words: &mut Words,
    old: &Device,
    sectors: u64,
    features: &Features,
    intent_from: u64,
    seat: &Seat,
) -> Result<(Arc<Device>, KBox<Worker>)> {
    let opened = region::open(words, old.origin, old.region, sectors, features, intent_from)?;
    make(words, opened, &seat.wake)
}

/// Makes a device of what was read, and its worker, and marks the region open. Sleeps.
#[inline(never)]
fn make(
    words: &mut Words,
    opened: region::Opened,
    wake: &Arc<Wake>,
) -> Result<(Arc<Device>, KBox<Worker>)> {
    let region::Opened { parts, found, mut mark } = opened;
    let device = Device::new(parts, wake.clone())?;
    restore_guard(&device);
    let worker = make_worker(&device, found)?;
    // Only now: what has failed so far has left the region as it was.
    mark.set(&device).inspect_err(|_| words.error(c"Cannot write to the region device"))?;
    Ok((device, worker))
}

/// Opens the device for a table, or shares the one that is open. Sleeps.
pub(crate) fn open(
    ctor: &mut Constructor<'_>,
    origin: &dm::Device,
    region: &dm::Device,
    sectors: u64,
    features: &Features,
    md: &Arc<MappedDevice>,
) -> Result<User> {
    let mut words = Words::default();
    let user = open_locked(&mut words, origin.block(), region.block(), sectors, features, md);
    trim(&mut lock::ENTRIES.lock());
    user.inspect_err(|_| words.tell(ctor))
}

fn open_locked(
    words: &mut Words,
    origin: BlockDevice,
    region: BlockDevice,
    sectors: u64,
    features: &Features,
    md: &Arc<MappedDevice>,
) -> Result<User> {
    let mut entries = lock::ENTRIES.lock();
    // Who resumes a device whose origin grows waits for this lock: what is allocated must not wait for writes to that.
    let _no_io = NoIo::enter();
    let open = entries.iter_mut().find(|e| e.device.region.number() == region.number());
    if let Some(entry) = open {
        let same_md = entry.users.iter().all(|&n| n == md.number());
        if entry.device.origin.number() != origin.number() || !same_md {
            words.error(c"Region is in use by another presnap device");
            return Err(EBUSY);
        }
        if sectors < entry.device.origin_sectors {
            words.error(region::ORIGIN_LARGER);
            return Err(EINVAL);
        }
        let larger = sectors > entry.device.origin_sectors;
        if larger {
            check_growth(&entry.device, words)?;
        }
        let seat = if larger { Some(Seat::new()?) } else { None };
        let larger = match seat {
            Some(seat) => {
                let seat = KBox::pin_init(new_mutex!(Some(seat), "presnap::larger"), GFP_KERNEL)?;
                Some(Larger { sectors, seat })
            }
            None => None,
        };
        make_room(&mut entry.users)?;
        entry.users.push_within_capacity(md.number()).map_err(|_| ENOMEM)?;
        let (key, md, features) = (entry.key, md.clone(), *features);
        if larger.is_some() {
            return Ok(User { key, device: SetOnce::new(), larger, md, features });
        }
        return Ok(User::new(key, entry.device.clone(), &md, &features));
    }
    let opened = region::open(words, origin, region, sectors, features, 0)?;
    let region::Opened { parts, found, mut mark } = opened;
    let wake = Arc::pin_init(Wake::new(), GFP_KERNEL)?;
    let device = Device::new(parts, wake)?;
    restore_guard(&device);
    let mut users = KVec::with_capacity(1, GFP_KERNEL)?;
    users.push_within_capacity(md.number()).map_err(|_| ENOMEM)?;
    make_room(&mut entries)?;
    let worker = make_worker(&device, found)?;
    // Only now: what has failed so far has left the region as it was.
    mark.set(&device).inspect_err(|_| words.error(c"Cannot write to the region device"))?;
    let worker = Thread::spawn(c"presnap", device.wake.clone(), worker)
        .inspect_err(|_| mark.take_back(&device))?;
    let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
    let entry = Entry { key, device: device.clone(), users, worker: Some(worker) };
    entries.push_within_capacity(entry).map_err(|_| ENOMEM)?;
    Ok(User::new(key, device, md, features))
}

/// Not inlined: what is made here is large before it is on the heap, and the caller's stack is not for all of it at once.
#[inline(never)]
fn make_worker(device: &Arc<Device>, found: Found) -> Result<KBox<Worker>> {
    Ok(KBox::new(Worker::new(device, found)?, GFP_KERNEL)?)
}

/// Makes room for one more. Sleeps.
///
/// Not inlined: the kernel's own code for it has overflow checks, so it is among the few known in `scripts/panics`.
#[inline(never)]
fn make_room<T>(values: &mut KVec<T>) -> Result {
    values.reserve(1, GFP_KERNEL).map_err(|_| ENOMEM)
}

/// The device whose mapped device or region has this number.
pub(crate) fn find(number: DeviceNumber) -> Option<Arc<Device>> {
    let entries = lock::ENTRIES.lock();
    let found =
        entries.iter().find(|e| e.users.contains(&number) || e.device.region.number() == number)?;
    Some(found.device.clone())
}

/// Puts the guard up for images that were live when the region was closed.
fn restore_guard(device: &Device) {
    let newest = {
        let root = device.root.lock();
        if !image_is_live(&root) {
            return;
        }
        root.newest().map_or(0, |r| r.id)
    };
    let slots = device.slots.lock();
    for slot in 0..slots.total() {
        if let Some(e) = slots.entry(slot).filter(|e| e.snapshot == newest) {
            if e.kind == presnap_engine::region::SlotKind::Data {
                device.generations.preserved().set_range(e.block, 1);
            }
        }
    }
    device.set_guard(Guard::Image);
}
