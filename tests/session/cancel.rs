//! Requests that are dropped, storages that fail, nodes that die: at every operation of everything
//! that takes several. And two requests on two nodes, one within the other at every point.

use std::time::Duration;

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use tokio::time::{Instant, advance, sleep, timeout};
use tower_keep::{
    MemoryStorage, Storage,
    session::{Notice, OverCap, Policy, SessionCursor},
};

use crate::{
    nodes::{Gate, Look, Node, Outcome, Reply, count, routes},
    staged::{Fate, Staged},
};

const HOUR: Duration = Duration::from_secs(3_600);
const GRACE: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_millis(500);

/// What a request does that takes several operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Login,
    /// By who is logged in already.
    LoginAgain,
    /// By somebody else than whose session it is.
    LoginOfAnother,
    /// The cap is one, and there is one.
    LoginOverCap,
    Rotate,
    RotateAnonymous,
    Prove,
    Logout,
    LogoutAnonymous,
    Others,
    Set,
    Save,
    Count,
    Begin,
    /// The id is due for a periodic rotation.
    Rotation,
    RotationWithSave,
    /// The new id of a periodic rotation is used for the first time.
    FirstUse,
}

use Act::*;

const ACTS: [Act; 17] = [
    Login,
    LoginAgain,
    LoginOfAnother,
    LoginOverCap,
    Rotate,
    RotateAnonymous,
    Prove,
    Logout,
    LogoutAnonymous,
    Others,
    Set,
    Save,
    Count,
    Begin,
    Rotation,
    RotationWithSave,
    FirstUse,
];

impl Act {
    fn path(self) -> &'static str {
        match self {
            Login | LoginAgain | LoginOverCap => "/login/alice",
            LoginOfAnother => "/login/mallory",
            Rotate | RotateAnonymous => "/rotate/-",
            Prove => "/prove/-",
            Logout | LogoutAnonymous => "/logout/-",
            Others => "/others/-",
            Set | RotationWithSave | Begin => "/set/wanted",
            Save => "/save/wanted",
            Count => "/count/-",
            Rotation | FirstUse => "/read/-",
        }
    }

    fn is_login(self) -> bool {
        matches!(self, Login | LoginAgain | LoginOfAnother | LoginOverCap)
    }

    /// Whether the old id is dead when it is done, and there is a new one.
    fn replaces(self) -> bool {
        self.is_login() || matches!(self, Rotate | RotateAnonymous | Prove | Others)
    }

    fn ends(self) -> bool {
        matches!(self, Logout | LogoutAnonymous)
    }

    fn rotates(self) -> bool {
        matches!(self, Rotation | RotationWithSave)
    }

    fn writes(self) -> bool {
        matches!(self, Set | Save | RotationWithSave | Begin)
    }

    /// The session and the record of ends are looked up at once, before the act begins; and the use of
    /// a session that is old enough for a rotation is noted.
    fn lookups(self) -> usize {
        2 + usize::from(self.rotates())
    }

    fn is_of_alice(self) -> bool {
        !matches!(self, Login | LoginOverCap | RotateAnonymous | LogoutAnonymous | Begin)
    }
}

/// One server and two processes: one for which nothing goes wrong, and one on which everything may.
struct Case {
    act: Act,
    healthy: Node,
    node: Node,
    staged: Staged,
    /// The session on which the act is done.
    id: String,
    public: String,
    /// What the first use of a new id makes old.
    old: Option<String>,
    /// Another session of alice's.
    other: String,
    what: String,
}

impl Case {
    async fn prepare(act: Act, what: String) -> Self {
        let memory = MemoryStorage::new();
        let mut policy =
            Policy::new().with_timeout(TIMEOUT).with_rotation(HOUR).with_rotation_grace(GRACE);
        if act == LoginOverCap {
            policy = policy.with_cap(1, OverCap::EndOldest);
        }
        let staged = Staged::new(&memory);
        let healthy = Node::new(Staged::new(&memory).erase(), policy.clone());
        let node = Node::new(staged.clone().erase(), policy);
        let other = healthy.login("alice").await;
        let mut id = healthy.ask("/set/kept", None).await.done().new_id();
        let mut old = None;
        if act.is_of_alice() {
            id = healthy.ask("/login/alice", Some(&id)).await.done().new_id();
        }
        let public = healthy.look(&id).await.unwrap().id;
        if act.rotates() || act == FirstUse {
            advance(HOUR).await;
        }
        if act == FirstUse {
            let new = healthy.ask("/read/-", Some(&id)).await.done().new_id();
            old = Some(std::mem::replace(&mut id, new));
        }
        Self { act, healthy, node, staged, id, public, old, other, what }
    }

    fn sent(&self) -> Option<&str> {
        Some(self.id.as_str()).filter(|_| self.act != Begin)
    }

    async fn look(&self, id: &str) -> Option<Look> {
        self.healthy.look(id).await
    }

    #[track_caller]
    fn assert(&self, holds: bool, why: &str) {
        assert!(holds, "{:?}, {}: {why}; asked was {:?}", self.act, self.what, self.staged.log());
    }

    /// What the client may find, with or without a reply.
    async fn check(&self, reply: Option<&Reply>) {
        let act = self.act;
        let done = reply.is_some_and(|reply| reply.outcome() == Outcome::Done);
        let new = reply.and_then(|reply| reply.cookie.clone()).flatten();
        let old = self.look(&self.id).await;
        if let Some(old) = &old {
            self.assert(old.has("kept"), "what was acknowledged is lost");
            let alice = old.principal.as_deref() == Some("alice");
            self.assert(alice == act.is_of_alice(), "the old id has other rights");
        }
        if act.replaces() {
            self.assert(done == new.is_some(), "who is told a new id has succeeded");
            if let Some(new) = &new {
                self.assert(old.is_none(), "two ids work at once");
                let Some(new) = self.look(new).await else {
                    return self.assert(false, "the new id does not work");
                };
                self.assert(new.has("kept") == (act != LoginOfAnother), "the data was mixed up");
            }
        }
        if act.ends() {
            self.assert(!done || old.is_none(), "it lives on");
            self.healthy.ask("/logout/-", Some(&self.id)).await.done();
            self.assert(self.look(&self.id).await.is_none(), "it lives on after all");
        }
        if act == Others && done {
            self.assert(self.look(&self.other).await.is_none(), "the other lives on");
        }
        if act.is_login() && reply.is_some() && !done && !self.staged.is_dead() {
            let principal = act.path().trim_start_matches("/login/");
            let page = self.healthy.sessions.list(principal, SessionCursor::START).await.unwrap();
            let other = self.look(&self.other).await.map(|look| look.id);
            let known = [other, Some(self.public.clone())];
            let unknown =
                page.sessions.iter().any(|it| !known.contains(&Some(it.public_id.to_string())));
            self.assert(!unknown, "a login that has failed has left a session");
        }
        if act == LoginOverCap {
            let mut ids = vec![self.other.clone(), self.healthy.login("alice").await];
            ids.extend(new.clone());
            let mut alive = 0;
            for id in &ids {
                alive += usize::from(self.look(id).await.is_some());
            }
            self.assert(alive == 1, "there are more sessions than the cap allows");
        }
        if act.writes() || matches!(act, Count) {
            let client = match act {
                Begin => new.clone(),
                _ => Some(new.clone().unwrap_or_else(|| self.id.clone())),
            };
            let look = match &client {
                Some(client) => self.look(client).await,
                None => None,
            };
            self.assert(act == Begin || look.is_some(), "a save has ended the session");
            if done {
                let look = look.expect("it began");
                let written = if act == Count { look.tally.count == 1 } else { look.has("wanted") };
                self.assert(written, "what was acknowledged is lost");
            }
        }
        if act.rotates() || act == FirstUse {
            self.check_rotation(new).await;
        }
    }

    /// Once begun, after the lookup, it goes on without the client.
    async fn check_carried_out(&self) {
        let old = self.look(&self.id).await;
        if self.act.replaces() || self.act.ends() {
            self.assert(old.is_none(), "it was not carried out to its end");
        } else if self.act.writes() && self.act != Begin {
            let written = old.is_some_and(|look| look.has("wanted"));
            self.assert(written, "it was not carried out to its end");
        }
        if self.act == Others {
            let other = self.look(&self.other).await;
            self.assert(other.is_none(), "it was not carried out to its end");
        }
    }

    /// Nobody is locked out by a rotation that he did not ask for.
    async fn check_rotation(&self, new: Option<String>) {
        let client = new.unwrap_or_else(|| self.id.clone());
        let old = self.old.clone().unwrap_or_else(|| self.id.clone());
        let by_old = self.healthy.ask("/save/by-the-old-id", Some(&old)).await;
        self.assert(by_old.outcome() == Outcome::Done, "the old id does not work");
        let look = self.look(&client).await;
        self.assert(look.is_some_and(|look| look.has("by-the-old-id")), "they are two sessions");
        // It may be that the client learns the new id only now.
        let client = self.healthy.ask("/read/-", Some(&client)).await.done().kept(&client);
        let client = client.expect("nobody has logged out");
        self.healthy.ask("/read/-", Some(&client)).await.done();
        self.healthy.notices();
        if client != old {
            advance(GRACE + Duration::from_secs(1)).await;
            self.assert(self.look(&old).await.is_none(), "the old id works after its grace");
            self.assert(self.healthy.notices() == [Notice::IdReused], "nobody was told");
        }
        self.assert(self.look(&client).await.is_some_and(|it| it.has("kept")), "locked out");
    }
}

/// Runs the act with this fate for each of its operations. The number of operations.
async fn at_every_operation(act: Act, fate: Fate, dropped: bool) -> usize {
    for number in 0.. {
        let what = format!("{fate:?} at operation {number}, dropped: {dropped}");
        let case = Case::prepare(act, what).await;
        case.staged.plan(number, fate);
        let began = Instant::now();
        let mut request = case.node.begin(act.path(), case.sent(), None);
        let mut reply = None;
        if dropped {
            tokio::select! {
                answered = &mut request => reply = Some(answered.unwrap()),
                () = case.staged.reached() => {
                    request.abort();
                    let _ = request.await;
                    case.staged.release();
                    sleep(Duration::from_secs(8)).await;
                    if number >= act.lookups() && !case.staged.is_dead() {
                        case.check_carried_out().await;
                    }
                }
            }
        } else {
            reply = Some(request.await.unwrap());
            let patience = 10 * TIMEOUT + 5 * TIMEOUT;
            case.assert(began.elapsed() <= patience, "somebody waited for too long");
        }
        case.check(reply.as_ref()).await;
        if !case.staged.was_reached() {
            let done = reply.is_some_and(|reply| reply.outcome() == Outcome::Done);
            case.assert(done, "it fails by itself");
            return number;
        }
    }
    unreachable!()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_at_any_operation_leaves_no_half() {
    for act in ACTS {
        for fate in [Fate::HeldBefore, Fate::HeldAfter] {
            let operations = at_every_operation(act, fate, true).await;
            assert!(operations > 0, "{act:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_fails_leaves_no_half() {
    for act in ACTS {
        at_every_operation(act, Fate::Unapplied, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_whose_answer_is_lost_leaves_no_half() {
    for act in ACTS {
        at_every_operation(act, Fate::Unanswered, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_at_any_operation_leaves_no_half() {
    for act in ACTS {
        for fate in [Fate::DeadBefore, Fate::DeadAfter] {
            for dropped in [false, true] {
                at_every_operation(act, fate, dropped).await;
            }
        }
    }
}

/// What another node does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Save,
    Rotate,
    Prove,
    LoginOfBob,
    Logout,
    Others,
    /// The other session ends this one.
    Rival,
    EndOne,
    EndAll,
    Read,
}

const MEANWHILE: [Meanwhile; 10] = [
    Meanwhile::Save,
    Meanwhile::Rotate,
    Meanwhile::Prove,
    Meanwhile::LoginOfBob,
    Meanwhile::Logout,
    Meanwhile::Others,
    Meanwhile::Rival,
    Meanwhile::EndOne,
    Meanwhile::EndAll,
    Meanwhile::Read,
];

/// The act is held at one operation, and another node does something from beginning to end.
async fn one_within_the_other(act: Act, meanwhile: Meanwhile, number: usize, fate: Fate) -> bool {
    let what = format!("{meanwhile:?} at operation {number}, {fate:?}");
    let case = Case::prepare(act, what).await;
    case.staged.plan(number, fate);
    let mut request = case.node.begin(act.path(), Some(&case.id), None);
    let answered = tokio::select! {
        answered = &mut request => Some(answered.unwrap()),
        () = case.staged.reached() => None,
    };
    if let Some(reply) = answered {
        case.check(Some(&reply)).await;
        return false;
    }
    // A look would rotate an id that is due.
    let lived = act.rotates() || case.look(&case.id).await.is_some();
    let other_lived = case.look(&case.other).await.is_some();
    let ask = async |what: &str| case.healthy.ask(what, Some(&case.id)).await;
    let second = match meanwhile {
        Meanwhile::Save => ask("/save/meanwhile").await,
        Meanwhile::Rotate => ask("/rotate/-").await,
        Meanwhile::Prove => ask("/prove/-").await,
        Meanwhile::LoginOfBob => ask("/login/bob").await,
        Meanwhile::Logout => ask("/logout/-").await,
        Meanwhile::Others => ask("/others/-").await,
        Meanwhile::Read => ask("/read/-").await,
        Meanwhile::Rival => case.healthy.ask("/others/-", Some(&case.other)).await,
        Meanwhile::EndOne => {
            case.healthy.ask(&format!("/end/{}", case.public), Some(&case.other)).await
        }
        Meanwhile::EndAll => {
            case.healthy.sessions.end_all("alice").await.unwrap();
            case.healthy.ask("/read/-", None).await
        }
    };
    case.staged.release();
    let first = request.await.unwrap();
    sleep(Duration::from_secs(8)).await;
    let (first_done, second_done) =
        (first.outcome() == Outcome::Done, second.outcome() == Outcome::Done);
    let (new, second_new) = (first.cookie.clone().flatten(), second.cookie.clone().flatten());
    let alive = async |id: &Option<String>| match id {
        Some(id) => case.look(id).await,
        None => None,
    };
    let old = alive(&Some(case.id.clone())).await;
    let mine = alive(&new).await;
    let theirs = alive(&second_new).await;
    let alice = act.is_of_alice();
    let is_alice = |look: &Look| look.principal.as_deref() == Some("alice");

    case.assert(!(first_done && act.replaces() && old.is_some()), "the old id works");
    if first_done && act.ends() && alice {
        case.assert(old.is_none(), "it was logged out");
        let moved = matches!(meanwhile, Meanwhile::Rotate | Meanwhile::Prove | Meanwhile::Others);
        case.assert(!moved || theirs.is_none(), "it lives on under another id");
    }
    match meanwhile {
        // Who has nothing to save into begins a session of his own.
        Meanwhile::Save if lived && second_done && second_new.is_none() => {
            for look in [&old, &mine].into_iter().flatten() {
                let mixed = act == LoginOfAnother && look.principal.as_deref() == Some("mallory");
                case.assert(look.has("meanwhile") != mixed, "lost, or in the wrong hands");
            }
        }
        Meanwhile::Rotate | Meanwhile::Prove if lived && second_done && second_new.is_some() => {
            case.assert(old.is_none(), "the old id works");
            if !act.is_login() {
                let same = act.rotates() || act == FirstUse;
                // Who has found nothing to write into has begun a session of his own.
                let alive = [&mine, &theirs].into_iter().flatten();
                let alive = alive.filter(|look| look.has("kept")).count();
                case.assert(alive <= 1 || same && new == second_new, "two ids work at once");
            }
        }
        Meanwhile::Logout if second_done => {
            case.assert(old.is_none(), "it was logged out");
            if lived {
                case.assert(mine.is_none(), "it lives on under another id");
            }
        }
        Meanwhile::Others if lived && second_done => {
            case.assert(alive(&Some(case.other.clone())).await.is_none(), "the other lives on");
            if act != LoginOfAnother {
                case.assert(mine.is_none() || theirs.is_none(), "two live");
            }
        }
        Meanwhile::Rival if other_lived && second_done => {
            case.assert(!mine.as_ref().is_some_and(is_alice), "a rival has ended it");
            case.assert(!alice || old.is_none(), "a rival has ended it, and the old id works");
        }
        Meanwhile::EndOne if alice && other_lived && second_done => {
            case.assert(old.is_none(), "it was ended");
            case.assert(act.is_login() || mine.is_none(), "it lives on under another id");
        }
        Meanwhile::EndAll => {
            case.assert(!alice || old.is_none(), "it lives on");
            case.assert(!mine.as_ref().is_some_and(is_alice), "it lives on");
            case.assert(alive(&Some(case.other.clone())).await.is_none(), "another lives on");
        }
        _ => {}
    }
    if act.writes() && first_done {
        let moved = [&old, &theirs].into_iter().flatten();
        for look in moved.filter(|look| look.has("kept")) {
            case.assert(look.has("wanted"), "what was acknowledged is lost");
        }
    }
    true
}

#[tokio::test(start_paused = true)]
async fn whatever_another_node_does_at_any_operation_both_hold() {
    let mut interleavings = 0;
    for act in ACTS.into_iter().filter(|act| *act != Begin) {
        for meanwhile in MEANWHILE {
            // The end of an operation and the beginning of the next are the same, but for what is
            // done at once.
            for fate in [Fate::HeldBefore, Fate::HeldAfter].into_iter().take(count(1, 2)) {
                // What comes before the lookups comes before the act.
                let mut number = if fate == Fate::HeldBefore { act.lookups() } else { 0 };
                while one_within_the_other(act, meanwhile, number, fate).await {
                    number += 1;
                    interleavings += 1;
                }
            }
        }
    }
    println!("{interleavings} interleavings");
}

/// Answers for a handler that takes too long, and for one that panics.
async fn careful(request: Request, next: Next) -> Response {
    let handler = async move { tokio::spawn(next.run(request)).await };
    match timeout(Duration::from_secs(1), handler).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// The same, in the same task.
async fn impatient(request: Request, next: Next) -> Response {
    match timeout(Duration::from_secs(1), next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_has_not_finished_is_not_saved() {
    let memory = MemoryStorage::new();
    let plain = Node::new(memory.clone().erase(), Policy::new());
    let remote = || Staged::new(&memory).erase();
    let timed = Node::around(routes().layer(from_fn(impatient)), remote(), Policy::new());
    let caught = Node::around(routes().layer(from_fn(careful)), remote(), Policy::new());
    let id = plain.ask("/set/kept", None).await.done().new_id();
    let half = timed.ask("/half/wanted", Some(&id)).await;
    assert_eq!((half.status, half.failure), (StatusCode::REQUEST_TIMEOUT, None));
    let half = timed.ask("/half/wanted", None).await;
    assert_eq!((half.status, half.cookie), (StatusCode::REQUEST_TIMEOUT, None));
    let panicked = caught.ask("/panic/wanted", Some(&id)).await;
    assert_eq!(panicked.status, StatusCode::INTERNAL_SERVER_ERROR);
    let panicked = plain.begin("/panic/wanted", Some(&id), None).await;
    assert!(panicked.unwrap_err().is_panic());
    let look = plain.look(&id).await.unwrap();
    assert!(look.has("kept") && !look.has("wanted"), "{look:?}");

    // By a policy that saves whatever the answer is.
    let eager = Policy::new().with_saves(|_| true);
    let timed = Node::around(routes().layer(from_fn(impatient)), remote(), eager);
    timed.ask("/half/wanted", Some(&id)).await;
    assert!(plain.look(&id).await.unwrap().has("wanted"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_before_the_handler_is_done_saves_nothing() {
    let memory = MemoryStorage::new();
    let node = Node::new(Staged::new(&memory).erase(), Policy::new());
    let id = node.ask("/set/kept", None).await.done().new_id();
    for what in ["set", "save", "count", "flash", "logout", "rotate"] {
        let gate = Gate::new(&crate::nodes::Dice::new(0));
        let request = node.begin(&format!("/{what}/wanted"), Some(&id), Some(&gate));
        gate.crowd(1).await;
        request.abort();
        gate.open();
        assert!(request.await.unwrap_err().is_cancelled());
        sleep(Duration::from_secs(8)).await;
        let look = node.look(&id).await.expect("it was not ended");
        assert!(!look.has("wanted") && look.tally.count == 0, "{what}: {look:?}");
    }
    // Afterwards, when the response was there.
    node.ask("/set/wanted", Some(&id)).await.done();
    assert!(node.look(&id).await.unwrap().has("wanted"));
}

/// To the millisecond: everything else would be a lifetime that grows.
#[tokio::test(start_paused = true)]
async fn rotations_do_not_extend_the_deadline() {
    let lifetime = Duration::from_secs(24 * 3_600);
    let memory = MemoryStorage::new();
    let policy = Policy::new().with_lifetime(lifetime).with_rotation(Duration::from_secs(60));
    let node = Node::new(memory.erase(), policy);
    let began = Instant::now();
    let mut id = node.ask("/login/alice", None).await.done().new_id();
    for round in 0..200 {
        advance(Duration::from_millis(61_003)).await;
        let what = ["read", "set", "rotate", "prove", "others"][round % 5];
        id = node.ask(&format!("/{what}/x"), Some(&id)).await.done().kept(&id).unwrap();
        let left = node.look(&id).await.unwrap().life_left;
        assert_eq!(left, lifetime - began.elapsed(), "after {round} rounds");
    }
    let left = lifetime - began.elapsed();
    advance(left - Duration::from_millis(1)).await;
    assert!(node.look(&id).await.is_some());
    advance(Duration::from_millis(2)).await;
    assert_eq!(node.look(&id).await, None);
}

/// The client's connection breaks whenever it is told the new id.
#[tokio::test(start_paused = true)]
async fn an_old_id_works_until_the_new_one_was_used_however_long_that_takes() {
    for save in [false, true] {
        let memory = MemoryStorage::new();
        let policy = Policy::new().with_rotation(HOUR).with_rotation_grace(GRACE);
        let nodes = [(); 2].map(|()| Node::new(Staged::new(&memory).erase(), policy.clone()));
        let old = nodes[0].ask("/set/kept", None).await.done().new_id();
        advance(HOUR).await;
        let gate = Gate::new(&crate::nodes::Dice::new(0));
        // This one has seen the session before it is rotated, and saves after.
        let path = if save { "/set/meanwhile" } else { "/read/-" };
        let slow = nodes[1].begin(path, Some(&old), Some(&gate));
        gate.crowd(1).await;
        let new = nodes[0].ask("/read/-", Some(&old)).await.done().new_id();
        gate.open();
        let slow = slow.await.unwrap().done();
        assert_eq!(slow.cookie, Some(Some(new.clone())), "it may be told twice");
        for round in 0..20 {
            advance(2 * HOUR).await;
            let again = nodes[round % 2].ask("/read/-", Some(&old)).await.done();
            assert_eq!(again.cookie, Some(Some(new.clone())), "round {round}, save: {save}");
        }
        let look = nodes[0].look(&old).await.expect("locked out");
        assert!(look.has("kept") && look.has("meanwhile") == save);
        nodes[1].ask("/read/-", Some(&new)).await.done();
        advance(GRACE).await;
        assert!(nodes[0].look(&old).await.is_some(), "in its grace");
        advance(Duration::from_millis(1)).await;
        assert_eq!(nodes[0].look(&old).await, None);
        assert_eq!(nodes[0].notices(), [Notice::IdReused]);
    }
}
