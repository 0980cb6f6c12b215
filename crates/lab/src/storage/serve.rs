//! The kernel's requests of one mount, each handed through the gate to what carries it out. No request is
//! answered from memory of an earlier one: attributes and names are valid for no time at all.

use super::backing::{Caller, Changes};
use super::fault::{Kind, Pass};
use super::locked;
use super::locks::Range;
use super::nodes::attr;
use super::request::{LockRequest, Served};
use fuser::{
    BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use nix::libc;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long the kernel may believe an attribute or a name.
pub(super) const VALID: Duration = Duration::ZERO;

/// Requests that the kernel may have under way without a caller that waits; more queue up in it.
const BACKGROUND_MAX: u16 = 4096;

/// Entries of a directory that one answer may have; the kernel asks for the next ones.
const ENTRIES_MAX: usize = 1536;

/// Past the page cache of the host, and several writes to one file at a time.
const OPENED: FopenFlags =
    FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS;
        config.add_capabilities(wanted).map_err(|missing| {
            io::Error::other(format!("the kernel's FUSE does not offer {missing:?}"))
        })?;
        // Above 0, so that neither can be refused.
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.entry(Kind::Look, reply, move |host| host.lookup(parent, &name));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.0.nodes.forget(ino, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(
            Kind::Look,
            reply,
            move |host, _| Ok(attr(ino, &host.nodes.get(ino)?.meta()?)),
            |reply, attr| reply.attr(&VALID, &attr),
        );
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            accessed,
            modified,
        };
        self.run(
            Kind::Change,
            reply,
            move |host, _| host.change(ino, handle.map(|h| h.0), changes),
            |reply, attr| reply.attr(&VALID, &attr),
        );
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.run(
            Kind::Look,
            reply,
            // An empty name means the link itself, which is open.
            move |host, _| nix::fcntl::readlinkat(&*host.nodes.get(ino)?.file, ""),
            |reply, target| reply.data(target.as_encoded_bytes()),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.to_owned(), caller(request));
        self.entry(Kind::Grow, reply, move |host| {
            host.make_dir(parent, &name, mode, caller)
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target, caller) = (name.to_owned(), target.to_owned(), caller(request));
        self.entry(Kind::Grow, reply, move |host| {
            host.make_symlink(parent, &name, &target, caller)
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.entry(Kind::Link, reply, move |host| host.link(ino, parent, &name));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.empty(Kind::Change, reply, move |host| {
            host.remove(parent, &name, false)
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.empty(Kind::Change, reply, move |host| {
            host.remove(parent, &name, true)
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.empty(Kind::Rename, reply, move |host| {
            host.rename((parent, &name), (new_parent, &new_name), flags.bits())
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let kind = if flags.0 & libc::O_ACCMODE == libc::O_RDONLY {
            Kind::Look
        } else {
            Kind::OpenToWrite
        };
        self.run(
            kind,
            reply,
            move |host, _| host.open(ino, flags.0),
            |reply, handle| reply.opened(FileHandle(handle), OPENED),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, caller) = (name.to_owned(), caller(request));
        self.run(
            Kind::Grow,
            reply,
            move |host, _| host.create(parent, &name, mode, flags, caller),
            |reply, (attr, handle)| {
                reply.created(&VALID, &attr, Generation(0), FileHandle(handle), OPENED);
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(
            Kind::Read,
            reply,
            move |host, _| host.read(handle.0, offset, size),
            |reply, bytes| reply.data(&bytes),
        );
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        let kind = match self.0.opened(handle.0) {
            Ok(open) if open.is_new => Kind::Fill,
            _ => Kind::Write,
        };
        self.run(
            kind,
            reply,
            move |host, pass| host.write(handle.0, offset, &data, pass),
            |reply, written| reply.written(written),
        );
    }

    fn flush(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.empty(Kind::Close, reply, move |host| {
            let open = host.opened(handle.0)?;
            let holder = host.holder(handle, owner);
            host.storage.locks.give_up_owner(open.key, &holder);
            host.storage.waiters.notify();
            Ok(())
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.empty(Kind::Close, reply, move |host| host.close(handle.0));
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.empty(Kind::Sync, reply, move |host| host.sync(handle.0));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.run(
            Kind::Look,
            reply,
            // Read when the first entry is asked for.
            move |host, _| {
                host.nodes.get(ino)?;
                let handle = host.next_handle();
                locked(&host.listings).insert(handle, Vec::new());
                Ok(handle)
            },
            |reply, handle| reply.opened(FileHandle(handle), FopenFlags::empty()),
        );
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        // The rest of a listing that was read with its beginning.
        let kind = if offset == 0 { Kind::Read } else { Kind::Look };
        self.run(
            kind,
            reply,
            move |host, _| {
                let fresh = (offset == 0).then(|| host.entries(ino)).transpose()?;
                let mut listings = locked(&host.listings);
                let listing = listings.get_mut(&handle.0).ok_or(Errno::EBADF)?;
                if let Some(fresh) = fresh {
                    *listing = fresh;
                }
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = listing.get(from..).unwrap_or_default();
                Ok(rest.iter().take(ENTRIES_MAX).cloned().collect::<Vec<_>>())
            },
            move |mut reply, entries| {
                for (next, (ino, kind, name)) in (offset + 1..).zip(entries) {
                    if reply.add(INodeNo(ino), next, kind, name) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.empty(Kind::Close, reply, move |host| {
            locked(&host.listings).remove(&handle.0);
            Ok(())
        });
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.empty(Kind::Sync, reply, move |host| host.sync_dir(ino));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.run(
            Kind::Look,
            reply,
            |host, pass| Ok((host.space()?, pass)),
            |reply, (space, pass)| {
                let unless_full = |free| if pass == Pass::InPlace { 0 } else { free };
                reply.statfs(
                    space.blocks(),
                    unless_full(space.blocks_free()),
                    unless_full(space.blocks_available()),
                    space.files(),
                    space.files_free(),
                    u32::try_from(space.block_size()).unwrap_or(4096),
                    u32::try_from(space.name_max()).unwrap_or(255),
                    u32::try_from(space.fragment_size()).unwrap_or(4096),
                );
            },
        );
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        let range = range(start, end, typ);
        self.run(
            Kind::Look,
            reply,
            move |host, _| {
                let open = host.opened(handle.0)?;
                let holder = host.holder(handle, owner);
                Ok(host.storage.locks.conflict(open.key, &holder, range))
            },
            move |reply, found| match found {
                None => reply.locked(start, end, libc::F_UNLCK, 0),
                Some(found) => {
                    let typ = if found.exclusive {
                        libc::F_WRLCK
                    } else {
                        libc::F_RDLCK
                    };
                    // Of the process nothing is known here; it may be another host's.
                    reply.locked(found.start, found.end, typ, 0);
                }
            },
        );
    }

    fn setlk(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        _pid: u32,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        let holder = self.0.holder(handle, owner);
        let range = range(start, end, typ);
        if typ == libc::F_UNLCK {
            return self.empty(Kind::Close, reply, move |host| {
                let open = host.opened(handle.0)?;
                host.storage.locks.give_up(open.key, &holder, range);
                host.storage.waiters.notify();
                Ok(())
            });
        }
        let ask = LockRequest {
            holder,
            range,
            waits,
            caller: request.pid(),
        };
        self.lock(ask, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let gives_back =
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_COLLAPSE_RANGE;
        let kind = if FallocateFlags::from_bits_retain(mode).intersects(gives_back) {
            Kind::Change
        } else {
            Kind::Grow
        };
        self.empty(kind, reply, move |host| {
            host.fallocate(handle.0, offset, length, mode)
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.run(
            Kind::Read,
            reply,
            move |host, _| host.seek(handle.0, offset, whence),
            |reply, found| reply.offset(found),
        );
    }
}

fn range(start: u64, end: u64, typ: i32) -> Range {
    Range {
        start,
        end,
        exclusive: typ == libc::F_WRLCK,
    }
}
