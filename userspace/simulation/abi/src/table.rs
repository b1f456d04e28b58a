// SPDX-License-Identifier: GPL-2.0-only

//! What the core of device-mapper does: it loads a line of a table, splits requests into bios for
//! the target, and tells the submitter when all of them have ended.

use crate::bio::{submit, Bio, Inner, Op, PerBio, Status, STS_IOERR, STS_OK};
use crate::dm::{
    Args, Constructor, DeviceNumber, Disposition, EndedBio, MapBio, MappedDevice, StatusKind,
    Target, Text,
};
use kernel::prelude::*;
use presnap_machine::blocks::SECTOR;
use presnap_machine::Machine;
use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::rc::Rc;

/// Why a table line was refused.
#[derive(Debug)]
pub struct Refused {
    /// The words of the target.
    pub why: String,
    /// The number.
    pub error: Error,
}

/// How a request ended.
pub struct Ended {
    /// Its status.
    pub status: Status,
    /// Of a read, the data.
    pub data: Vec<u8>,
    /// Disks have carried all of it out.
    pub carried_out: bool,
}

type Done = Box<dyn FnOnce(Ended)>;

/// What bios tell their target.
pub(crate) trait AnyTarget {
    fn map(&self, bio: Box<Inner>, offset: u64) -> Disposition;
    fn end_io(&self, per_bio: [u64; 4], status: Status, mirror: Option<Status>) -> Status;
}

struct Loaded<T>(KBox<T>);

impl<T: Target> AnyTarget for Loaded<T> {
    fn map(&self, inner: Box<Inner>, offset: u64) -> Disposition {
        self.0.map(MapBio::new(Bio::from_inner(inner), offset))
    }

    fn end_io(&self, per_bio: [u64; 4], status: Status, mirror: Option<Status>) -> Status {
        self.0.end_io(&EndedBio::new(per_bio), status, mirror)
    }
}

/// A request of whoever uses the mapped device.
pub(crate) struct Request {
    target: Rc<dyn AnyTarget>,
    /// Bios that have not ended, and one for the splitting.
    pending: Cell<u32>,
    status: Cell<Status>,
    carried_out: Cell<bool>,
    bytes: usize,
    data: RefCell<Vec<u8>>,
    done: Cell<Option<Done>>,
}

impl Request {
    pub(crate) fn target(&self) -> Rc<dyn AnyTarget> {
        self.target.clone()
    }

    pub(crate) fn take_data(&self, offset: usize, data: Vec<u8>) {
        if data.is_empty() {
            return;
        }
        let mut all = self.data.borrow_mut();
        if data.len() == self.bytes {
            *all = data;
            return;
        }
        all.resize(self.bytes, 0);
        all[offset..offset + data.len()].copy_from_slice(&data);
    }

    pub(crate) fn piece_ended(&self, status: Status, carried_out: bool) {
        if status != STS_OK && self.status.get() == STS_OK {
            self.status.set(status);
        }
        self.carried_out.set(self.carried_out.get() && carried_out);
        self.pending.set(self.pending.get() - 1);
        if self.pending.get() == 0 {
            if let Some(done) = self.done.take() {
                let data = self.data.take();
                let carried_out = self.carried_out.get();
                done(Ended { status: self.status.get(), data, carried_out });
            }
        }
    }
}

/// A line of a table, loaded.
pub struct Table<T: Target> {
    target: Rc<Loaded<T>>,
}

impl<T: Target + 'static> Table<T> {
    /// Loads a line of `sectors` sectors for a mapped device.
    ///
    /// # Errors
    ///
    /// Those of the target.
    pub fn load(number: DeviceNumber, sectors: u64, words: &str) -> Result<Self, Refused> {
        let words = to_words(words);
        let mut ctor = Constructor::new(number, sectors);
        match T::construct(&mut ctor, Args::new(&words)) {
            Ok(target) => Ok(Self { target: Rc::new(Loaded(target)) }),
            Err(error) => Err(Refused { why: ctor.why(), error }),
        }
    }

    /// The target.
    pub fn target(&self) -> &T {
        &self.target.0
    }

    /// The table becomes live.
    ///
    /// # Errors
    ///
    /// Those of the target, which stays as it is then.
    pub fn resume(&self) -> Result {
        self.target().preresume()?;
        self.target().resume();
        Ok(())
    }

    /// The table is suspended; there must be no bio on its way.
    ///
    /// # Panics
    ///
    /// If there is.
    pub fn suspend(&self) {
        assert_eq!(Rc::strong_count(&self.target), 1, "suspended with bios on their way");
        self.target().postsuspend();
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// Those of the target.
    pub fn message(&self, words: &str) -> Result<String> {
        let words = to_words(words);
        let mut buf = vec![0; 16384];
        let mut text = Text::new(&mut buf);
        self.target().message(Args::new(&words), &mut text)?;
        let n = text.len();
        Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
    }

    /// The status.
    pub fn status(&self, kind: StatusKind) -> String {
        let mut buf = vec![0; 4096];
        let mut text = Text::new(&mut buf);
        self.target().status(kind, &mut text);
        let n = text.len();
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    /// Sends a request of `sectors` sectors at `sector` to the target; `data` is what a write writes.
    pub fn submit(
        &self,
        op: Op,
        sector: u64,
        sectors: u32,
        data: Vec<u8>,
        fua: bool,
        done: impl FnOnce(Ended) + 'static,
    ) {
        let machine = Machine::current();
        let bytes = sectors as usize * SECTOR;
        assert!(op != Op::Write || data.len() == bytes, "a write without its data");
        let request = Rc::new(Request {
            target: self.target.clone(),
            pending: Cell::new(1),
            status: Cell::new(STS_OK),
            carried_out: Cell::new(true),
            bytes,
            data: RefCell::default(),
            done: Cell::new(Some(Box::new(done))),
        });
        let data: Rc<[u8]> = data.into();
        let mut at = 0;
        loop {
            let length = sectors - at;
            let accepted = Rc::new(Cell::new(length));
            request.pending.set(request.pending.get() + 1);
            let inner = Box::new(Inner {
                op,
                sector: sector + u64::from(at),
                sectors: length,
                fua,
                data: data.clone(),
                offset: at as usize * SECTOR,
                aimed: None,
                per_bio: <T::PerBio as PerBio>::to_words(PerBio::from_words([0; 4])),
                request: request.clone(),
                accepted: accepted.clone(),
                mirror: None,
                carried_out: false,
            });
            match machine.atomic(|| self.target.map(inner, sector + u64::from(at))) {
                Disposition::Remapped(bio) => submit(&machine, bio.into_inner()),
                Disposition::Kept => {}
                Disposition::Failed(bio) => {
                    // The target is not told of its end.
                    bio.into_inner().request.piece_ended(STS_IOERR, false);
                }
            }
            at += accepted.get();
            if at >= sectors {
                break;
            }
        }
        request.piece_ended(STS_OK, true);
    }

    /// The mapped device, for its number.
    pub fn mapped_device(number: DeviceNumber) -> MappedDevice {
        MappedDevice::new(number)
    }
}

fn to_words(words: &str) -> Vec<CString> {
    words.split_whitespace().map(|word| CString::new(word).expect("no NUL in words")).collect()
}
