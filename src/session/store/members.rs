//! The sessions of a principal: beginning one more, within the cap, and knowing them all.

use std::{cmp::Reverse, time::Duration};

use futures_util::future::{join, join_all};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Judged, Loaded, MOST_MOVES, Replacement, Store};
use crate::{
    session::{
        Notice, OverCap, SessionError, SessionErrorKind,
        index::{Added, Admission, Cursor, IfFull, Member, Page, Swap},
        policy::Cap,
        record::{Live, Moved},
        token::TokenDigest,
    },
    storage::{ErrorKind, Fence, Get, Result as StorageResult, Storage, When},
};

/// What a member of the index is.
pub(in crate::session) enum Look {
    Alive(Box<Seen>),
    Dead,
    /// It has ended the others of its principal a short while ago. It is dead, or the index will soon
    /// know its new id.
    Replaced,
    /// A session that is not for this policy to judge.
    Unreadable,
}

/// A session as a list sees it.
pub(in crate::session) struct Seen {
    pub(in crate::session) session: Loaded,
    /// For how long it was not used, at most; a use shows only after the slack.
    pub(in crate::session) unused: Duration,
}

impl Store {
    /// Begins a session of a principal in place of `old`.
    ///
    /// In three trips one after another, of which the first was the lookup: the new record and the
    /// list of the principal's sessions; then the end of the old record and the new list.
    pub(in crate::session) async fn login(
        &self,
        old: Option<&Loaded>,
        live: Live,
        left: Duration,
        fence: Option<Fence>,
    ) -> Result<Loaded, SessionError> {
        let gone = || SessionError::new(SessionErrorKind::Gone);
        let principal = live.principal.clone().unwrap_or_default();
        let handle = live.handle;
        let read = self.timed(self.index.read(&principal, Cursor::START));
        let (new, first) =
            join(self.create(live, old.map(|old| &old.live), left, fence), read).await;
        let new = new?.ok_or_else(gone)?;
        let (id, first) = (new.id, first.ok());
        let retire = async {
            match old {
                Some(old) => self.retire(old, new, Replacement::Login).await,
                None => Ok(Some(new)),
            }
        };
        let enlist = self.enlist_new(&principal, Member { handle, id }, first);
        let outcome = match self.policy.cap {
            // A login that is refused leaves the old session as it was.
            Some(Cap { over: OverCap::Refuse, .. }) => match enlist.await {
                Ok(()) => retire.await,
                Err(error) => Err(error),
            },
            Some(_) => {
                let (retired, enlisted) = join(retire, enlist).await;
                enlisted.and(retired)
            }
            None => {
                let (retired, enlisted) = join(retire, enlist).await;
                if let Err(error) = enlisted {
                    event!(warn, %error, "a session is missing in the list of its principal");
                }
                retired
            }
        };
        if !matches!(outcome, Ok(Some(_))) {
            // Nobody was told its id.
            let _ = self.timed(self.storage.delete(&self.key(id), When::Always)).await;
            match old.filter(|old| old.live.handle == handle) {
                Some(old) => self.enlist(&principal, old).await,
                None => self.forget(&principal, handle).await,
            }
        }
        outcome?.ok_or_else(gone)
    }

    /// Adds a session to the list of its principal, within the cap.
    async fn enlist_new(
        &self,
        principal: &str,
        member: Member,
        first: Option<Page>,
    ) -> Result<(), SessionError> {
        let Some(cap) = self.policy.cap else {
            let add = self.index.add(principal, member, first, IfFull::Ask);
            if let Added::Full(pages) = self.timed(add).await? {
                for page in pages {
                    let dead = self.dead(page.members()).await;
                    let _ = self.timed(self.index.remove(principal, page, &dead)).await;
                }
                self.timed(self.index.add(principal, member, None, IfFull::Grow)).await?;
            }
            return Ok(());
        };
        let most = usize::from(cap.most);
        let mut first = first;
        self.patiently(async {
            loop {
                let admit = self.index.admit(principal, member, most, first.take());
                let Admission::OverCap(page) = self.timed(admit).await? else { return Ok(()) };
                let leaving = self.leaving(principal, page.members(), most, cap.over).await?;
                let handles: Vec<_> = leaving.iter().map(|(handle, _)| *handle).collect();
                // Before they leave the list: if this stops here, nobody lives on unlisted.
                for (handle, alive) in leaving {
                    self.evict(principal, handle, alive).await?;
                }
                let swap = self.index.replace_members(principal, page, &handles, member, most);
                match self.timed(swap).await? {
                    Swap::Swapped => return Ok(()),
                    Swap::Conflict(page) => first = Some(page),
                }
            }
        })
        .await
    }

    async fn evict(
        &self,
        principal: &str,
        handle: Uuid,
        alive: Option<Loaded>,
    ) -> Result<(), SessionError> {
        if let Some(session) = alive {
            self.destroy(&session).await?;
            event!(info, "a session was ended, as its principal has begun another");
            let principal = principal.to_owned();
            self.policy.observe(&Notice::Evicted { principal, public_id: handle });
        }
        Ok(())
    }

    /// Who has to go for one more to have room: the dead, and by the policy the living.
    async fn leaving(
        &self,
        principal: &str,
        members: &[Member],
        most: usize,
        over: OverCap,
    ) -> Result<Vec<(Uuid, Option<Loaded>)>, SessionError> {
        let mut leaving = Vec::new();
        let (mut alive, mut replaced, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        let looks = join_all(members.iter().map(|member| self.look(member.id))).await;
        for (member, seen) in members.iter().zip(looks) {
            match seen? {
                Look::Alive(seen) if seen.session.live.handle == member.handle => alive.push(*seen),
                Look::Replaced => replaced.push(member.handle),
                Look::Alive(_) | Look::Dead => leaving.push((member.handle, None)),
                Look::Unreadable => unreadable.push(member.handle),
            }
        }
        let staying = members.len() - leaving.len() - replaced.len();
        let excess = (staying + 1).saturating_sub(most);
        if excess > 0 && over == OverCap::Refuse {
            return Err(SessionError::new(SessionErrorKind::OverCap));
        }
        // Those that only others can judge go last.
        let missing = excess.saturating_sub(alive.len());
        for handle in replaced.into_iter().chain(unreadable.into_iter().take(missing)) {
            // It may be on its way to another id, and who leaves the list must not live on.
            self.end(principal, handle).await?;
            leaving.push((handle, None));
        }
        match over {
            OverCap::EndLeastRecentlyUsed => alive.sort_by_key(|seen| Reverse(seen.unused)),
            _ => alive.sort_by_key(|seen| Reverse(seen.session.age())),
        }
        alive.truncate(excess);
        leaving
            .extend(alive.into_iter().map(|seen| (seen.session.live.handle, Some(seen.session))));
        Ok(leaving)
    }

    async fn dead(&self, members: &[Member]) -> Vec<Member> {
        let looks = join_all(members.iter().map(|member| self.look(member.id))).await;
        let seen = members.iter().zip(looks);
        seen.filter(|(_, seen)| matches!(seen, Ok(Look::Dead))).map(|(member, _)| *member).collect()
    }

    /// What has become of a session, without using it.
    pub(in crate::session) async fn look(&self, mut id: TokenDigest) -> StorageResult<Look> {
        for _ in 0..MOST_MOVES {
            let sent = Instant::now();
            let found = match self.timed(self.storage.get(&self.key(id), Get::new())).await {
                Ok(found) => found,
                Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Look::Dead),
                Err(error) => return Err(error),
            };
            let Some(entry) = found.entry else { return Ok(Look::Dead) };
            match self.judge(None, id, &entry, sent).await {
                Judged::Ended => return Ok(Look::Dead),
                Judged::Moved(Moved::Replaced { successor: None }) => return Ok(Look::Replaced),
                Judged::Moved(Moved::Replaced { successor: Some(next) }) => id = next,
                Judged::Newer | Judged::Unreadable => return Ok(Look::Unreadable),
                Judged::Moved(Moved::Rotated { successor, .. } | Moved::Retired { successor }) => {
                    id = successor;
                }
                Judged::Live(session) => {
                    // The last use has set the life to the idle timeout, or to what was left until
                    // the deadline. Saves count as well.
                    let unused = self.policy.idle.saturating_sub(entry.ttl).min(entry.age);
                    return Ok(Look::Alive(Box::new(Seen { session, unused })));
                }
            }
        }
        Ok(Look::Dead)
    }

    /// Has the index know the present id of a session.
    pub(in crate::session) async fn enlist(&self, principal: &str, session: &Loaded) {
        let member = Member { handle: session.live.handle, id: session.id };
        let replaced = self.timed(self.index.replace(principal, member, None)).await;
        let outcome = match replaced {
            Ok(true) => Ok(()),
            Ok(false) => {
                let add = self.index.add(principal, member, None, IfFull::Grow);
                self.timed(add).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            event!(warn, %error, "a session is missing in the list of its principal for now");
        }
    }

    /// Takes a session out of the index, to keep the list short.
    pub(in crate::session) async fn forget(&self, principal: &str, handle: Uuid) {
        let mut at = Some(Cursor::START);
        while let Some(cursor) = at {
            let Ok(page) = self.timed(self.index.read(principal, cursor)).await else { return };
            at = page.next();
            let held = page.members().iter().find(|member| member.handle == handle).copied();
            if let Some(member) = held {
                let _ = self.timed(self.index.remove(principal, page, &[member])).await;
                return;
            }
        }
    }

    /// Has the index forget the dead of a page, and know where the others were moved.
    pub(in crate::session) async fn heal(
        &self,
        principal: &str,
        page: Page,
        dead: &[Member],
        moved: &[Member],
    ) {
        for member in moved {
            let _ = self.timed(self.index.replace(principal, *member, None)).await;
        }
        if !dead.is_empty() || page.is_idle() {
            let _ = self.timed(self.index.remove(principal, page, dead)).await;
        }
    }
}
