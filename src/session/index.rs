//! Which sessions a principal has: a hint.
//!
//! The index serves to list and to cap sessions. It never ends one, and it may be wrong: a member
//! whose session has ended stays until a reader drops it, and a session may be missing when a node
//! died between storing it and adding it. Whoever reads it looks the sessions up.
//!
//! A principal's members lie in buckets of at most [`CAPACITY`], entries of their own. The first
//! says how many there are. Every write is a compare-and-swap; those of one principal queue within
//! this process, so that only processes race.
//!
//! | | trips |
//! |---|---|
//! | read a bucket | 1 |
//! | add or admit, with the first bucket at hand and room in it | 1, and 1 for each lost race |
//! | without the first bucket at hand | 1 more |
//! | add when the first bucket, at hand, is full | 3; 4 to begin another bucket |
//! | replace or remove, with the bucket at hand | 1 |
//!
//! # Buckets beyond the first
//!
//! Their members are found only while the first bucket counts them, and it may be counted down when
//! the last has become empty. So who adds to a later bucket writes the first one *afterwards*, with
//! a count that covers it; who counts down reads the first bucket *before* it finds the last one
//! empty, and swaps that version. Whichever comes second notices. The write also renews the first
//! bucket's life, so that it outlives the others.

mod bucket;

use std::{fmt, time::Duration};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use self::bucket::{Bucket, MOST_BUCKETS};
pub(super) use self::bucket::{CAPACITY, Member};
use super::queue::{Queues, Turn};
use crate::storage::{
    AnyStorage, Entry, Error, ErrorKind, Get, Identity, Key, Name, Put, PutOutcome, Result,
    Storage, Version, When,
};

/// How often a compare-and-swap is tried. Each lost one means that another process has won.
const TRIES: usize = 64;

/// The index of a namespace. Clones share their queues.
#[derive(Clone)]
pub(super) struct Index {
    storage: AnyStorage,
    namespace: Name,
    detail: Name,
    life: Duration,
    /// By principal; each turn leaves the first bucket to the next.
    queues: Queues<Page>,
}

/// A bucket as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    number: u32,
    /// For the first page from itself, for others from that on the way of which they were read.
    buckets: u32,
    bucket: Bucket,
    when: When,
}

/// Which page to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) bucket: u32,
    /// How many there were when the first was read.
    pub(super) buckets: u32,
}

impl Cursor {
    pub(super) const START: Self = Self { bucket: 0, buckets: 1 };
}

impl Page {
    pub(super) fn members(&self) -> &[Member] {
        self.bucket.members()
    }

    #[cfg(test)]
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    #[cfg(test)]
    pub(super) fn buckets(&self) -> u32 {
        self.buckets
    }

    /// `None` if there was no entry, or none of ours.
    pub(super) fn version(&self) -> Option<Version> {
        match self.when {
            When::Version(version) => Some(version),
            _ => None,
        }
    }

    pub(super) fn next(&self) -> Option<Cursor> {
        let bucket = self.number.checked_add(1)?;
        (bucket < self.buckets).then_some(Cursor { bucket, buckets: self.buckets })
    }

    /// Whether it is the last of several and empty: [`Index::remove`] lets go of it, even if nothing
    /// is removed.
    pub(super) fn is_idle(&self) -> bool {
        self.number > 0 && self.number + 1 == self.buckets && self.members().is_empty()
    }
}

/// What to do if there is no room in the first and the last bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfFull {
    /// Add nothing and give the members back, for some may be dead.
    Ask,
    /// Begin another bucket.
    Grow,
}

/// What has become of an [`add`](Index::add).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Added {
    Added,
    /// No room: the first bucket and, if there are several, the last. [`Index::remove`] the dead,
    /// and add with [`IfFull::Grow`].
    Full(Vec<Page>),
}

/// What has become of an [`admit`](Index::admit).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    Added,
    /// The cap is reached: find out who is dead, choose who has to go, and
    /// [`replace_members`](Index::replace_members).
    OverCap(Page),
}

/// What has become of a [`replace_members`](Index::replace_members).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Swap {
    Swapped,
    /// Nothing was changed, for this is there now (or `gone` was too few). Admit again with it.
    Conflict(Page),
}

impl Index {
    /// The index of the sessions in a namespace, of which none lives longer than `life`.
    pub(super) fn new(storage: AnyStorage, namespace: Name, life: Duration) -> Self {
        let life = life.max(Duration::from_millis(1));
        Self { storage, namespace, detail: Name::new("index"), life, queues: Queues::new() }
    }

    /// One bucket, in one trip. [`Cursor::START`] is the first; [`Page::next`] leads on.
    pub(super) async fn read(&self, principal: &str, at: Cursor) -> Result<Page> {
        let mut page = self.load(principal, at.bucket).await?;
        if at.bucket > 0 {
            page.buckets = at.buckets;
        }
        Ok(page)
    }

    /// Adds a session, or gives it its new id if its handle is in the bucket that has room: an add
    /// may be repeated. To change an id for good, [`replace`](Self::replace) it.
    ///
    /// `first` is the first page, if the caller has read it already.
    pub(super) async fn add(
        &self,
        principal: &str,
        member: Member,
        first: Option<Page>,
        if_full: IfFull,
    ) -> Result<Added> {
        let mut turn = self.enter(principal).await;
        let mut first = self.first(principal, &mut turn, first).await?;
        for _ in 0..TRIES {
            if !first.bucket.insert(member) {
                break;
            }
            match self.store(principal, first).await? {
                Ok(stored) => {
                    turn.leave(stored);
                    return Ok(Added::Added);
                }
                Err(current) => first = current,
            }
        }
        if !first.bucket.is_full() {
            return Err(contended());
        }
        for _ in 0..TRIES {
            let last = first.buckets - 1;
            if last > 0 {
                let (page, added) = self.add_to(principal, last, member).await?;
                if added {
                    turn.leave(self.cover(principal, first, last).await?);
                    return Ok(Added::Added);
                }
                if if_full == IfFull::Ask {
                    let pages = vec![first.clone(), Page { buckets: first.buckets, ..page }];
                    turn.leave(first);
                    return Ok(Added::Full(pages));
                }
                if first.buckets == MOST_BUCKETS {
                    self.edit(principal, page, |bucket| bucket.insert_in_place_of_oldest(member))
                        .await?;
                    turn.leave(self.cover(principal, first, last).await?);
                    return Ok(Added::Added);
                }
            } else if if_full == IfFull::Ask {
                turn.leave(first.clone());
                return Ok(Added::Full(vec![first]));
            }
            // It may be there, from before the first was lost, and full.
            let (_, added) = self.add_to(principal, first.buckets, member).await?;
            let begun = first.buckets;
            first = self.cover(principal, first, begun).await?;
            if added {
                turn.leave(first);
                return Ok(Added::Added);
            }
        }
        Err(contended())
    }

    /// Adds a session while the principal has fewer than `cap` of them in the first bucket, or gives
    /// it its new id if it is there. With a `cap` of 1 to [`CAPACITY`] there is no other bucket, but
    /// for what was added before there was a cap.
    pub(super) async fn admit(
        &self,
        principal: &str,
        member: Member,
        cap: usize,
        first: Option<Page>,
    ) -> Result<Admission> {
        let cap = cap.clamp(1, CAPACITY);
        let mut turn = self.enter(principal).await;
        let mut first = self.first(principal, &mut turn, first).await?;
        for _ in 0..TRIES {
            if first.bucket.len() >= cap && !first.bucket.holds(member.handle) {
                turn.leave(first.clone());
                return Ok(Admission::OverCap(first));
            }
            first.bucket.insert(member);
            match self.store(principal, first).await? {
                Ok(stored) => {
                    turn.leave(stored);
                    return Ok(Admission::Added);
                }
                Err(current) => first = current,
            }
        }
        Err(contended())
    }

    /// Adds a session in place of those that are `gone`, if the first page is still the one that was
    /// read and holds at most `cap` then. One trip.
    pub(super) async fn replace_members(
        &self,
        principal: &str,
        first: Page,
        gone: &[Uuid],
        member: Member,
        cap: usize,
    ) -> Result<Swap> {
        let mut swapped = first.clone();
        swapped.bucket.retain(|old| !gone.contains(&old.handle));
        if !swapped.bucket.insert(member) || swapped.bucket.len() > cap.clamp(1, CAPACITY) {
            return Ok(Swap::Conflict(first));
        }
        let mut turn = self.enter(principal).await;
        if let Some(last) = turn.take().filter(|last| last.is_newer_than(&first)) {
            turn.leave(last.clone());
            return Ok(Swap::Conflict(last));
        }
        match self.store(principal, swapped).await? {
            Ok(stored) => {
                turn.leave(stored);
                Ok(Swap::Swapped)
            }
            Err(current) => {
                turn.leave(current.clone());
                Ok(Swap::Conflict(current))
            }
        }
    }

    /// Gives the session of this handle its new id, in whatever bucket it is. `false` if it is in
    /// none.
    pub(super) async fn replace(
        &self,
        principal: &str,
        member: Member,
        first: Option<Page>,
    ) -> Result<bool> {
        let mut turn = self.enter(principal).await;
        let holds = |page: &Page| page.bucket.holds(member.handle);
        // Another process may have added it since: only a fresh page can say that it is not there.
        let first = match newest(turn.take(), first).filter(holds) {
            Some(page) => page,
            None => self.load(principal, 0).await?,
        };
        let give = |bucket: &mut Bucket| bucket.replace(member);
        let (first, mut found) = self.edit(principal, first, give).await?;
        let mut next = first.next();
        turn.leave(first);
        while !found && let Some(cursor) = next {
            let page = self.read(principal, cursor).await?;
            next = page.next();
            (_, found) = self.edit(principal, page, give).await?;
        }
        Ok(found)
    }

    /// Removes members of a page if they still have the id that the reader saw, and lets go of the
    /// last buckets if they are empty then.
    ///
    /// To be called by who reads, with those that he found dead, if there are any or if the page
    /// [is idle](Page::is_idle).
    pub(super) async fn remove(&self, principal: &str, page: Page, gone: &[Member]) -> Result<()> {
        let mut turn = self.enter(principal).await;
        let page = match turn.take() {
            Some(left) if page.number == 0 && left.is_newer_than(&page) => left,
            _ => page,
        };
        let remove = |bucket: &mut Bucket| {
            let before = bucket.len();
            bucket.retain(|member| !gone.contains(member));
            bucket.len() < before
        };
        let (page, _) = self.edit(principal, page, remove).await?;
        if page.number == 0 {
            turn.leave(page);
        } else if page.is_idle() {
            turn.leave(self.count_down(principal).await?);
        }
        Ok(())
    }

    async fn enter(&self, principal: &str) -> Turn<Page> {
        self.queues.enter(Sha256::digest(principal).into()).await
    }

    /// The newest first page that is at hand, or a fresh one.
    async fn first(
        &self,
        principal: &str,
        turn: &mut Turn<Page>,
        read: Option<Page>,
    ) -> Result<Page> {
        match newest(turn.take(), read) {
            Some(page) => Ok(page),
            None => self.load(principal, 0).await,
        }
    }

    /// Adds a member to this bucket, if there is room.
    async fn add_to(&self, principal: &str, number: u32, member: Member) -> Result<(Page, bool)> {
        let page = self.load(principal, number).await?;
        self.edit(principal, page, |bucket| bucket.insert(member)).await
    }

    /// Writes the first bucket with a count that covers this one.
    async fn cover(&self, principal: &str, mut first: Page, number: u32) -> Result<Page> {
        for _ in 0..TRIES {
            first.bucket.buckets = first.bucket.buckets.max(number.saturating_add(1));
            match self.store(principal, first).await? {
                Ok(stored) => return Ok(stored),
                Err(current) => first = current,
            }
        }
        Err(contended())
    }

    /// Leaves the last buckets out of the count while they are empty.
    async fn count_down(&self, principal: &str) -> Result<Page> {
        // Before the last is found empty: see the top.
        let mut first = self.load(principal, 0).await?;
        let counted = first.buckets;
        while first.bucket.buckets > 1 {
            let last = first.bucket.buckets - 1;
            if !self.load(principal, last).await?.members().is_empty() {
                break;
            }
            first.bucket.buckets = last;
        }
        if first.bucket.buckets == counted {
            return Ok(first);
        }
        // Who has changed it meanwhile may have filled what was empty.
        Ok(self.store(principal, first).await?.unwrap_or_else(|current| current))
    }

    /// Changes a bucket, again and again until nobody comes in between. Nothing is written if `change`
    /// says that there is nothing to change.
    async fn edit(
        &self,
        principal: &str,
        mut page: Page,
        change: impl Fn(&mut Bucket) -> bool,
    ) -> Result<(Page, bool)> {
        for _ in 0..TRIES {
            if !change(&mut page.bucket) {
                return Ok((page, false));
            }
            match self.store(principal, page).await? {
                Ok(stored) => return Ok((stored, true)),
                Err(current) => page = current,
            }
        }
        Err(contended())
    }

    async fn load(&self, principal: &str, number: u32) -> Result<Page> {
        match self.storage.get(&self.key(principal, number), Get::new()).await {
            Ok(lookup) => Ok(Page::of(number, lookup.entry.as_ref())),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Page::foreign(number)),
            Err(error) => Err(error),
        }
    }

    /// Stores a page if nobody has since it was read, and otherwise returns what is there.
    async fn store(&self, principal: &str, mut page: Page) -> Result<Result<Page, Page>> {
        let put = Put::new(page.bucket.encode(), self.life).with_condition(page.when);
        match self.storage.put(&self.key(principal, page.number), put).await {
            Ok(PutOutcome::Stored(version)) => {
                page.when = When::Version(version);
                if page.number == 0 {
                    page.buckets = page.bucket.buckets;
                }
                Ok(Ok(page))
            }
            Ok(PutOutcome::Conflict(entry)) => {
                Ok(Err(Page::of(page.number, entry.as_ref()).counting(page.buckets)))
            }
            // What is not an entry of ours can only be replaced blindly.
            Err(error) if error.kind() == ErrorKind::Corrupt && page.when != When::Always => {
                Ok(Err(Page::foreign(page.number).counting(page.buckets)))
            }
            Err(error) => Err(error),
        }
    }

    fn key(&self, principal: &str, number: u32) -> Key {
        let identity = Identity::new(principal).and(number.to_be_bytes());
        Key::new(&self.namespace, &self.detail, identity)
    }
}

impl Page {
    /// What is damaged counts as empty, and is replaced under its version.
    fn of(number: u32, entry: Option<&Entry>) -> Self {
        let bucket = entry.and_then(|entry| Bucket::decode(&entry.value)).unwrap_or(Bucket::EMPTY);
        let when = entry.map_or(When::Absent, |entry| When::Version(entry.version));
        Self { number, buckets: bucket.buckets, bucket, when }
    }

    fn foreign(number: u32) -> Self {
        Self { number, buckets: 1, bucket: Bucket::EMPTY, when: When::Always }
    }

    /// For all but the first, which knows the number itself.
    fn counting(mut self, buckets: u32) -> Self {
        if self.number > 0 {
            self.buckets = buckets;
        }
        self
    }

    fn is_newer_than(&self, other: &Self) -> bool {
        self.version() > other.version()
    }
}

fn newest(left: Option<Page>, read: Option<Page>) -> Option<Page> {
    match (left, read) {
        (Some(left), Some(read)) if read.is_newer_than(&left) => Some(read),
        (left, read) => left.or(read),
    }
}

fn contended() -> Error {
    Error::new(ErrorKind::Unavailable, "too many processes change the sessions of one principal")
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
