// SPDX-License-Identifier: GPL-2.0-only

//! Directories of attributes in sysfs, below the disk of a mapped device.

use crate::dm::{DeviceNumber, MappedDevice, Text};
use kernel::prelude::*;
use std::cell::RefCell;
use std::rc::{Rc, Weak};

/// One file of a directory.
pub struct File {
    /// File name.
    pub name: &'static CStr,
    /// Permissions.
    pub mode: u16,
    /// For a binary file, its largest size in bytes.
    pub binary: Option<usize>,
}

impl File {
    /// A text file that can only be read.
    pub const fn ro(name: &'static CStr) -> Self {
        Self { name, mode: 0o444, binary: None }
    }

    /// A text file that root may write.
    pub const fn rw(name: &'static CStr) -> Self {
        Self { name, mode: 0o644, binary: None }
    }

    /// A text file that can only be written.
    pub const fn wo(name: &'static CStr) -> Self {
        Self { name, mode: 0o200, binary: None }
    }

    /// A binary file.
    pub const fn binary(name: &'static CStr, mode: u16, size: usize) -> Self {
        Self { name, mode, binary: Some(size) }
    }
}

/// What the files of a directory do, by their place in its list.
pub trait Files: 'static {
    /// Writes the content of a text file.
    ///
    /// # Errors
    ///
    /// Those of the file.
    fn show(&self, index: usize, out: &mut Text<'_>) -> Result;

    /// Takes what was written to a text file.
    ///
    /// # Errors
    ///
    /// Those of the file.
    fn store(&self, index: usize, input: &[u8]) -> Result;

    /// Reads from a binary file.
    ///
    /// # Errors
    ///
    /// Those of the file.
    fn read_binary(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<usize> {
        let _ = (index, offset, out);
        Err(EINVAL)
    }

    /// Writes to a binary file.
    ///
    /// # Errors
    ///
    /// Those of the file.
    fn write_binary(&self, index: usize, offset: u64, data: &[u8]) -> Result<usize> {
        let _ = (index, offset, data);
        Err(EINVAL)
    }
}

struct Inner {
    md: DeviceNumber,
    path: String,
    specs: &'static [File],
    files: Box<dyn Files>,
}

thread_local! {
    static DIRECTORIES: RefCell<Vec<Weak<Inner>>> = const { RefCell::new(Vec::new()) };
}

/// A directory; removed when dropped.
pub struct Directory {
    inner: Rc<Inner>,
}

impl Directory {
    /// Makes the directory `name` below the disk of `md`.
    ///
    /// # Errors
    ///
    /// None.
    pub fn below_disk<F: Files>(
        md: &MappedDevice,
        name: &CStr,
        specs: &'static [File],
        files: KBox<F>,
    ) -> Result<Self> {
        Ok(Self::new(md.number(), name.to_string_lossy().into_owned(), specs, files))
    }

    /// Makes the directory `name` within this one.
    ///
    /// # Errors
    ///
    /// None.
    pub fn subdirectory<F: Files>(
        &self,
        name: &CStr,
        specs: &'static [File],
        files: KBox<F>,
    ) -> Result<Self> {
        let path = format!("{}/{}", self.inner.path, name.to_string_lossy());
        Ok(Self::new(self.inner.md, path, specs, files))
    }

    fn new<F: Files>(
        md: DeviceNumber,
        path: String,
        specs: &'static [File],
        files: KBox<F>,
    ) -> Self {
        let files = Box::new(KBox::into_inner(files));
        let inner = Rc::new(Inner { md, path, specs, files });
        DIRECTORIES.with_borrow_mut(|all| {
            all.retain(|known| known.strong_count() > 0);
            all.push(Rc::downgrade(&inner));
        });
        Self { inner }
    }
}

fn find(md: DeviceNumber, path: &str) -> Result<(Rc<Inner>, usize)> {
    let (directory, name) = path.rsplit_once('/').ok_or(ENOENT)?;
    let inner = DIRECTORIES.with_borrow(|all| {
        let mut live = all.iter().filter_map(Weak::upgrade);
        live.find(|inner| inner.md == md && inner.path == directory)
    });
    let inner = inner.ok_or(ENOENT)?;
    let index = inner.specs.iter().position(|spec| spec.name.to_bytes() == name.as_bytes());
    Ok((inner, index.ok_or(ENOENT)?))
}

/// Writes to a text file of a mapped device.
///
/// # Errors
///
/// `ENOENT`, and those of the file.
pub fn write(md: DeviceNumber, path: &str, input: &str) -> Result {
    let (inner, index) = find(md, path)?;
    inner.files.store(index, input.as_bytes())
}

/// Reads a text file of a mapped device.
///
/// # Errors
///
/// `ENOENT`, and those of the file.
pub fn read(md: DeviceNumber, path: &str) -> Result<String> {
    let (inner, index) = find(md, path)?;
    let mut buf = vec![0; 4096];
    let mut text = Text::new(&mut buf);
    inner.files.show(index, &mut text)?;
    let n = text.len();
    Ok(String::from_utf8_lossy(&buf[..n]).trim_end().to_owned())
}
