// SPDX-License-Identifier: GPL-2.0-only

//! Directories of attributes in sysfs, below the disk of a mapped device.

use crate::bindings;
use crate::dm::{MappedDevice, Text};
use core::ptr::NonNull;
use kernel::alloc::flags::{GFP_KERNEL, __GFP_ZERO};
use kernel::bindings as k;
use kernel::prelude::*;
use kernel::types::Opaque;

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

/// What the files of a directory do. `index` is the file's place in the list given to
/// [`Directory::new`]. Called in process context, from many threads at once.
pub trait Files: Send + Sync + 'static {
    /// Writes the content of a text file.
    fn show(&self, index: usize, out: &mut Text<'_>) -> Result;

    /// Takes what was written to a text file.
    fn store(&self, index: usize, input: &[u8]) -> Result;

    /// Reads from a binary file.
    fn read_binary(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<usize> {
        let _ = (index, offset, out);
        Err(EINVAL)
    }

    /// Writes to a binary file; returns how many bytes were taken, at least 1.
    fn write_binary(&self, index: usize, offset: u64, data: &[u8]) -> Result<usize> {
        let _ = (index, offset, data);
        Err(EINVAL)
    }
}

/// The kobject first, so that a pointer to it is a pointer to this.
#[repr(C)]
struct Inner {
    kobject: Opaque<k::kobject>,
    ops: k::sysfs_ops,
    ktype: k::kobj_type,
    attributes: KVec<k::bin_attribute>,
    specs: &'static [File],
    files: KBox<dyn Files>,
}

/// A directory in sysfs; removed when dropped, after the last call of its files has returned.
///
/// # Invariants
///
/// `inner` points to an [`Inner`] whose kobject is initialised and added, of which this holds one
/// reference; the kobject's release frees it.
pub struct Directory {
    inner: NonNull<Inner>,
}

// SAFETY: Only a handle; the files are `Sync`.
unsafe impl Send for Directory {}
// SAFETY: As above.
unsafe impl Sync for Directory {}

impl Directory {
    /// Makes the directory `name` below the disk of `md`. Sleeps.
    pub fn below_disk(
        md: &MappedDevice,
        name: &CStr,
        specs: &'static [File],
        files: KBox<dyn Files>,
    ) -> Result<Self> {
        Self::new(md.kobject(), name, specs, files)
    }

    /// Makes the directory `name` within this one. Sleeps.
    pub fn subdirectory(
        &self,
        name: &CStr,
        specs: &'static [File],
        files: KBox<dyn Files>,
    ) -> Result<Self> {
        // SAFETY: Live by the type invariant.
        let parent = unsafe { (*self.inner.as_ptr()).kobject.get() };
        Self::new(parent, name, specs, files)
    }

    fn new(
        parent: *mut k::kobject,
        name: &CStr,
        specs: &'static [File],
        files: KBox<dyn Files>,
    ) -> Result<Self> {
        let mut attributes = KVec::with_capacity(specs.len(), GFP_KERNEL)?;
        for spec in specs {
            let mut attribute = k::bin_attribute::default();
            attribute.attr.name = spec.name.as_char_ptr();
            attribute.attr.mode = spec.mode;
            // SAFETY: An attribute of ours; lockdep gets a key for it.
            unsafe { bindings::presnap_attribute_init(&mut attribute.attr) };
            if let Some(size) = spec.binary {
                attribute.size = size;
                attribute.read = Some(read_binary);
                attribute.write = Some(write_binary);
            }
            attributes.push_within_capacity(attribute)?;
        }
        let inner = KBox::new(
            Inner {
                kobject: Opaque::zeroed(),
                ops: k::sysfs_ops { show: Some(show), store: Some(store) },
                ktype: k::kobj_type { release: Some(release), ..Default::default() },
                attributes,
                specs,
                files,
            },
            GFP_KERNEL | __GFP_ZERO,
        )?;
        let raw = KBox::into_raw(inner);
        // SAFETY: `raw` is ours and stays in its place until `release`.
        unsafe { (*raw).ktype.sysfs_ops = &raw const (*raw).ops };
        // SAFETY: A zeroed kobject, a type that outlives it, a live parent, a valid format.
        let r = unsafe {
            k::kobject_init_and_add(
                (*raw).kobject.get(),
                &raw const (*raw).ktype,
                parent,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        };
        // INVARIANT: Initialised even on failure; the handle's drop puts the reference.
        let dir = Self { inner: NonNull::new(raw).ok_or(ENOMEM)? };
        kernel::error::to_result(r)?;
        for (i, spec) in specs.iter().enumerate() {
            // SAFETY: `raw` is live; nobody changes the attributes any more.
            let Some(attribute) = (unsafe { (*raw).attributes.get(i) }) else { break };
            let r = if spec.binary.is_some() {
                // SAFETY: The kobject is in sysfs, the attribute lives as long as it.
                unsafe { k::sysfs_create_bin_file((*raw).kobject.get(), attribute) }
            } else {
                // SAFETY: As above.
                unsafe {
                    k::sysfs_create_file_ns(
                        (*raw).kobject.get(),
                        &attribute.attr,
                        core::ptr::null(),
                    )
                }
            };
            kernel::error::to_result(r)?;
        }
        Ok(dir)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: Live by the type invariant.
        let kobject = unsafe { (*self.inner.as_ptr()).kobject.get() };
        // SAFETY: Removes the files and waits for calls under way.
        unsafe { k::kobject_del(kobject) };
        // SAFETY: The reference of this handle.
        unsafe { k::kobject_put(kobject) };
    }
}

/// # Safety
///
/// Called by the kobject code, once, with a kobject that `Directory::new` made.
unsafe extern "C" fn release(kobject: *mut k::kobject) {
    // SAFETY: The kobject is the first field of the `Inner` made by `Directory::new`; its last
    // reference is gone.
    drop(unsafe { KBox::from_raw(kobject.cast::<Inner>()) });
}

/// # Safety
///
/// `kobject` must be that of an `Inner`, live during `'a`.
unsafe fn inner<'a>(kobject: *mut k::kobject) -> &'a Inner {
    // SAFETY: Promised by the caller.
    unsafe { &*kobject.cast::<Inner>() }
}

fn index_of(inner: &Inner, attribute: *const k::attribute) -> usize {
    // The attribute is the first field of its bin_attribute, in our array.
    let offset = (attribute as usize).wrapping_sub(inner.attributes.as_ptr() as usize);
    offset / core::mem::size_of::<k::bin_attribute>()
}

/// # Safety
///
/// Called by sysfs with a kobject and attribute of `Directory::new` and a page.
unsafe extern "C" fn show(
    kobject: *mut k::kobject,
    attribute: *mut k::attribute,
    buf: *mut kernel::ffi::c_char,
) -> isize {
    // SAFETY: sysfs calls with our kobject, held during the call.
    let inner = unsafe { inner(kobject) };
    // SAFETY: sysfs gives a page.
    let buf = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), 4096) };
    let mut text = Text::new(buf);
    match inner.files.show(index_of(inner, attribute), &mut text) {
        Ok(()) => text.len() as isize,
        Err(e) => e.to_errno() as isize,
    }
}

/// # Safety
///
/// Called by sysfs with a kobject and attribute of `Directory::new` and `count` bytes.
unsafe extern "C" fn store(
    kobject: *mut k::kobject,
    attribute: *mut k::attribute,
    buf: *const kernel::ffi::c_char,
    count: usize,
) -> isize {
    // SAFETY: As in `show`.
    let inner = unsafe { inner(kobject) };
    // SAFETY: sysfs passes `count` readable bytes.
    let input = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), count) };
    match inner.files.store(index_of(inner, attribute), input) {
        Ok(()) => count as isize,
        Err(e) => e.to_errno() as isize,
    }
}

/// # Safety
///
/// Called by sysfs with a kobject and attribute of `Directory::new` and room for `count` bytes.
unsafe extern "C" fn read_binary(
    _file: *mut k::file,
    kobject: *mut k::kobject,
    attribute: *const k::bin_attribute,
    buf: *mut kernel::ffi::c_char,
    offset: k::loff_t,
    count: usize,
) -> isize {
    // SAFETY: As in `show`.
    let inner = unsafe { inner(kobject) };
    // SAFETY: sysfs passes `count` writable bytes.
    let out = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), count) };
    match inner.files.read_binary(index_of(inner, attribute.cast()), offset as u64, out) {
        Ok(n) => n.min(count) as isize,
        Err(e) => e.to_errno() as isize,
    }
}

/// # Safety
///
/// Called by sysfs with a kobject and attribute of `Directory::new` and `count` bytes.
unsafe extern "C" fn write_binary(
    _file: *mut k::file,
    kobject: *mut k::kobject,
    attribute: *const k::bin_attribute,
    buf: *mut kernel::ffi::c_char,
    offset: k::loff_t,
    count: usize,
) -> isize {
    // SAFETY: As in `show`.
    let inner = unsafe { inner(kobject) };
    // SAFETY: sysfs passes `count` readable bytes.
    let data = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), count) };
    match inner.files.write_binary(index_of(inner, attribute.cast()), offset as u64, data) {
        Ok(n) => n.min(count) as isize,
        Err(e) => e.to_errno() as isize,
    }
}
