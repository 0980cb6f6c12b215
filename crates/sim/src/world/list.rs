//! The newest protected list of a datastore, followed page by page: reading it as a whole with each page
//! that lands would cost the square of the number of VMs.

use mainstay_core::id::{Generation, VmId};
use mainstay_core::wire::{PAGE_BYTES, PageWrite, ProtectedVm, read_page_at, read_table};
use std::collections::{BTreeMap, BTreeSet};

/// What a new owner would find.
#[derive(Debug)]
pub(super) struct NewestList {
    pub(super) generation: Generation,
    pages: BTreeMap<u32, Vec<usize>>,
    pub(super) vms: BTreeSet<usize>,
}

/// A cluster and its VMs.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) cluster: u64,
    pub(super) vms: &'a BTreeMap<VmId, usize>,
}

impl NewestList {
    /// Reads a whole file, if that can be done.
    pub(super) fn read(known: Known<'_>, generation: Generation, file: &[u8]) -> Option<Self> {
        read_table::<ProtectedVm>(known.cluster, file).ok()?;
        let mut list = Self {
            generation,
            pages: BTreeMap::new(),
            vms: BTreeSet::new(),
        };
        let pages = u32::try_from(file.len().div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX);
        for file_page in 0..pages {
            list.look_at(known, file_page, file);
        }
        Some(list)
    }

    /// Takes pages that were written; false when the file must be read as a whole.
    pub(super) fn follow(&mut self, known: Known<'_>, pages: &[PageWrite], file: &[u8]) -> bool {
        pages
            .iter()
            .all(|(file_page, _)| self.look_at(known, *file_page, file))
    }

    fn look_at(&mut self, known: Known<'_>, file_page: u32, file: &[u8]) -> bool {
        let Ok((page, contents)) = read_page_at::<ProtectedVm>(known.cluster, file, file_page)
        else {
            return false;
        };
        let ids = contents.entries.keys();
        let vms: Vec<usize> = ids.filter_map(|vm| known.vms.get(vm).copied()).collect();
        self.vms.extend(&vms);
        let mut gone = self.pages.remove(&page).unwrap_or_default();
        gone.retain(|vm| !vms.contains(vm));
        self.pages.insert(page, vms);
        for vm in gone {
            if !self.pages.values().any(|vms| vms.contains(&vm)) {
                self.vms.remove(&vm);
            }
        }
        true
    }
}
