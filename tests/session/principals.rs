//! A principal's sessions: the end of all, of the others, of one, and the cap, under fire.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tower_keep::{
    MemoryStorage, Storage,
    session::{OverCap, Policy, SessionCursor, Sessions},
    storage::AnyStorage,
};
use uuid::Uuid;

use crate::{
    nodes::{Gate, Node, Outcome, Reply, World, count, races},
    races::policy,
    staged::Staged,
    support::RedisServer,
};

races! {
    /// Saves, rotations and logins that began before it are in vain; logins after it are not.
    the_end_of_all_is_the_end, rounds: 3, 30, policy, end_all_races_everything
}

races! {
    /// The same, with ids that change by themselves.
    the_end_of_all_is_the_end_of_sessions_that_rotate, rounds: 2, 30,
    |seed| policy(seed).with_rotation(Duration::from_millis(5)), end_all_races_everything
}

async fn end_all_races_everything(world: World) {
    let many = count(200, 1_000);
    let bob = world.any().login("bob").await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(world.any().login("alice").await);
    }
    // They end all that they find, also a login that begins while they are under way.
    let rivals = world.seed % 2 == 1;
    let [racing, late] = [Gate::new(&world.dice), Gate::new(&world.dice)];
    let begin = |number: usize, gate: &Gate| {
        let id = ids[number % 10].as_str();
        let (what, id) = match number % 40 {
            0..4 if rivals => ("others", Some(id)),
            0..8 => ("rotate", Some(id)),
            8..12 => ("login", None),
            12..16 => ("login", Some(id)),
            number => (["set", "save", "count", "flash"][number % 4], Some(id)),
        };
        let path = format!("/{what}/alice");
        world.any().begin(&path, id, Some(gate))
    };
    let requests: Vec<_> = (0..many).map(|number| begin(number, &racing)).collect();
    let late_requests: Vec<_> = (0..40).map(|number| begin(number, &late)).collect();
    let bobs: Vec<_> = (0..20)
        .map(|number| world.any().begin(&format!("/save/{number}"), Some(&bob), Some(&racing)))
        .collect();
    racing.crowd(requests.len() + bobs.len()).await;
    late.crowd(late_requests.len()).await;
    racing.open();
    world.dice.pause().await;
    world.any().sessions.end_all("alice").await.unwrap();
    let after = match rivals {
        true => None,
        false => Some(world.any().login("alice").await),
    };
    late.open();
    for request in late_requests {
        let reply = request.await.unwrap();
        assert_eq!(reply.outcome(), Outcome::Gone, "it began before the end: {reply:?}");
    }
    for request in requests {
        let reply = request.await.unwrap();
        assert!(matches!(reply.outcome(), Outcome::Done | Outcome::Gone), "{reply:?}");
        ids.extend(reply.cookie.flatten());
    }
    for id in &ids {
        assert_eq!(world.look(id).await, None, "one of {} lives on", ids.len());
    }
    for bob in bobs {
        bob.await.unwrap().done();
    }
    let bob = world.any().look(&bob).await.expect("bob is another");
    assert!((0..20).all(|number| bob.has(&number.to_string())), "{bob:?}");
    if let Some(after) = after {
        assert!(world.any().look(&after).await.is_some(), "it began after the end");
        let page = world.any().sessions.list("alice", SessionCursor::START).await.unwrap();
        assert_eq!(page.sessions.len(), 1);
    }
    world.any().login("alice").await;
}

races! {
    /// All others die; and the present one, if it is logged out meanwhile.
    the_end_of_the_others_ends_all_others, rounds: 10, 300, policy, end_others_races_everything
}

async fn end_others_races_everything(world: World) {
    let current = world.any().login("alice").await;
    let mut others = Vec::new();
    for _ in 0..6 {
        others.push(world.any().login("alice").await);
    }
    let gate = Gate::new(&world.dice);
    let mut racing = Vec::new();
    for number in 0..36 {
        let what = ["set", "save", "count", "rotate", "login", "prove"][number % 6];
        let id = Some(&others[number / 6]).filter(|_| what != "login");
        let id = id.map(String::as_str);
        racing.push(world.any().begin(&format!("/{what}/alice"), id, Some(&gate)));
    }
    let own: Vec<_> = (0..4)
        .map(|number| world.any().begin(&format!("/save/{number}"), Some(&current), Some(&gate)))
        .collect();
    let begin =
        |what: &str, id: &str| world.any().begin(&format!("/{what}/-"), Some(id), Some(&gate));
    let logout = world.dice.one_in(3).then(|| begin("logout", &current));
    let rotation = world.dice.one_in(3).then(|| begin("rotate", &current));
    let second = world.dice.one_in(2).then(|| begin("others", &others[0]));
    let again = world.dice.one_in(4).then(|| begin("others", &current));
    let extra = [&logout, &rotation, &second, &again].into_iter().flatten().count();
    let first = begin("others", &current);
    gate.crowd(racing.len() + own.len() + extra + 1).await;
    gate.open();

    let mut ids: Vec<_> = others.clone();
    for request in racing {
        let reply = request.await.unwrap();
        assert!(matches!(reply.outcome(), Outcome::Done | Outcome::Gone), "{reply:?}");
        ids.extend(reply.cookie.flatten());
    }
    let mut saved = Vec::new();
    for (number, request) in own.into_iter().enumerate() {
        if request.await.unwrap().outcome() == Outcome::Done {
            saved.push(number);
        }
    }
    let mut replies: Vec<Option<Reply>> = Vec::new();
    for request in [Some(first), again, second, logout, rotation] {
        replies.push(match request {
            Some(request) => Some(request.await.unwrap()),
            None => None,
        });
    }
    let mut own_ids = vec![current];
    let mut second_id = None;
    for (number, reply) in replies.iter().enumerate() {
        let Some(reply) = reply else { continue };
        assert!(matches!(reply.outcome(), Outcome::Done | Outcome::Gone), "{reply:?}");
        match number {
            2 => second_id = reply.cookie.clone().flatten(),
            _ => own_ids.extend(reply.cookie.clone().flatten()),
        }
    }
    let done = |number: usize| {
        let reply: &Option<Reply> = &replies[number];
        reply.as_ref().is_some_and(|reply| reply.outcome() == Outcome::Done)
    };
    let mut alive = Vec::new();
    for id in &own_ids {
        alive.extend(world.look(id).await);
    }
    assert!(alive.len() <= 1, "two ids of one session: {alive:?}");
    if done(3) {
        assert!(alive.is_empty(), "it was logged out: {alive:?}");
    }
    let (first, second) = (done(0) || done(1), done(2));
    if first || second {
        for id in &ids {
            assert_eq!(world.look(id).await, None, "another lives on");
        }
    }
    let mut rival = None;
    if let Some(id) = &second_id {
        rival = world.look(id).await;
    }
    assert!(
        !first || alive.is_empty() || rival.is_none(),
        "each has ended the other, and both live"
    );
    if let [alive] = &alive[..] {
        let kept = |number: &usize| alive.has(&number.to_string());
        assert!(saved.iter().all(kept), "{saved:?} was acknowledged: {alive:?}");
    }
    if extra == 0 {
        assert!(first && alive.len() == 1, "nobody was at the present session");
    }
}

races! {
    /// Whatever becomes of its id.
    the_end_of_one_reaches_it_while_it_rotates, rounds: 10, 300,
    |seed| policy(seed).with_rotation(Duration::from_millis(1)), end_races_rotation
}

async fn end_races_rotation(world: World) {
    let id = world.any().login("alice").await;
    let by = world.any().login("alice").await;
    let public = world.any().look(&id).await.unwrap().id;
    let gate = Gate::new(&world.dice);
    let begin = |what: &str| world.any().begin(&format!("/{what}/-"), Some(&id), Some(&gate));
    let racing: Vec<_> = ["read", "rotate", "save", "read", "prove"].map(begin).into();
    gate.crowd(racing.len()).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    gate.open();
    world.dice.pause().await;
    match world.dice.one_in(2) {
        true => {
            world.any().ask(&format!("/end/{public}"), Some(&by)).await.done();
        }
        false => {
            let public: Uuid = public.parse().unwrap();
            world.any().sessions.end("alice", public).await.unwrap();
        }
    }
    let mut ids = vec![id];
    for request in racing {
        ids.extend(request.await.unwrap().cookie.flatten());
    }
    for id in &ids {
        assert_eq!(world.look(id).await, None, "one of {}", ids.len());
    }
    assert!(world.any().look(&by).await.is_some());
}

fn capped(seed: usize, cap: u8, over: OverCap) -> Policy {
    policy(seed).with_cap(cap, over)
}

/// The cap and what happens beyond it, by the number of the world.
fn thrown_cap(seed: usize) -> (u8, OverCap) {
    let over = [OverCap::EndOldest, OverCap::EndLeastRecentlyUsed, OverCap::Refuse];
    ([1, 3][seed % 2], over[seed / 2 % 3])
}

races! {
    /// However many log in at once.
    a_cap_holds_on_all_nodes, rounds: 6, 300,
    |seed| { let (cap, over) = thrown_cap(seed); capped(seed, cap, over) }, logins_race_for_the_cap
}

async fn logins_race_for_the_cap(world: World) {
    let (cap, over) = thrown_cap(world.seed);
    let gate = Gate::new(&world.dice);
    let logins: Vec<_> =
        (0..10).map(|_| world.any().begin("/login/alice", None, Some(&gate))).collect();
    gate.crowd(logins.len()).await;
    gate.open();
    let mut alive = 0;
    let mut ids = Vec::new();
    for login in logins {
        let reply = login.await.unwrap();
        match reply.outcome() {
            Outcome::Done => ids.push(reply.new_id()),
            // Somebody who came later may have ended it before it knew.
            Outcome::Gone if over != OverCap::Refuse => {}
            Outcome::Refused if over == OverCap::Refuse => {}
            _ => panic!("{reply:?}"),
        }
    }
    for id in &ids {
        alive += usize::from(world.look(id).await.is_some());
    }
    assert_eq!(alive, usize::from(cap), "{over:?}, of {}", ids.len());
}

races! {
    /// Also if the sessions that count change their ids meanwhile.
    a_cap_holds_while_ids_change, rounds: 10, 300, |seed| capped(seed, 2, OverCap::EndOldest),
    logins_race_rotations_for_the_cap
}

async fn logins_race_rotations_for_the_cap(world: World) {
    let mut ids = vec![world.any().login("alice").await, world.any().login("alice").await];
    let gate = Gate::new(&world.dice);
    let begin = |what: &str, id: Option<&String>| {
        world.any().begin(&format!("/{what}/alice"), id.map(String::as_str), Some(&gate))
    };
    let requests = vec![
        begin("rotate", Some(&ids[0])),
        begin("prove", Some(&ids[1])),
        begin("login", None),
        begin("login", None),
    ];
    gate.crowd(requests.len()).await;
    gate.open();
    for request in requests {
        ids.extend(request.await.unwrap().cookie.flatten());
    }
    let mut alive = Vec::new();
    for id in &ids {
        alive.extend(world.look(id).await);
    }
    assert!(alive.len() <= 2, "{} live", alive.len());
}

/// Every page once, and all that is on them.
async fn visit(sessions: &Sessions, principal: &str) -> (usize, BTreeSet<Uuid>) {
    let (mut pages, mut ids) = (0, BTreeSet::new());
    let mut at = Some(SessionCursor::START);
    while let Some(cursor) = at {
        let page = sessions.list(principal, cursor).await.unwrap();
        pages += 1;
        for session in page.sessions {
            assert!(ids.insert(session.public_id), "it is there twice");
        }
        at = page.next;
    }
    (pages, ids)
}

/// The time that the end of all took.
async fn a_crowd(storage: AnyStorage, logins: usize) -> Duration {
    let node = Node::new(storage, policy(logins));
    let bob = node.login("bob").await;
    let mut ids = Vec::new();
    for _ in 0..logins {
        ids.push(node.login("alice").await);
    }
    let (pages, listed) = visit(&node.sessions, "alice").await;
    assert_eq!(listed.len(), logins);
    assert!(pages <= logins.div_ceil(64) + 1, "{pages} pages");
    let began = Instant::now();
    node.sessions.end_all("alice").await.unwrap();
    let took = began.elapsed();
    for id in ids.iter().step_by(97) {
        assert_eq!(node.look(id).await, None);
    }
    assert!(node.look(&bob).await.is_some());
    assert_eq!(visit(&node.sessions, "alice").await.1.len(), 0);
    took
}

#[tokio::test]
async fn thousands_of_sessions_of_one_principal_are_listed_once_and_ended_at_once() {
    for logins in [10, count(1_000, 10_000)] {
        let took = a_crowd(MemoryStorage::new().erase(), logins).await;
        println!("memory: the end of {logins} sessions took {took:?}");
    }
    let server = RedisServer::start();
    let storage = crate::redis_storage(&server.url(), "races").await;
    for logins in [10, count(300, 3_000)] {
        let took = a_crowd(storage.clone(), logins).await;
        println!("Redis: the end of {logins} sessions took {took:?}");
    }
    server.check_keys("races");
}

#[tokio::test]
async fn the_end_of_all_is_one_operation() {
    let staged = Staged::new(&MemoryStorage::new());
    let node = Node::new(staged.clone().erase(), policy(0));
    for _ in 0..200 {
        node.login("alice").await;
    }
    staged.count();
    node.sessions.end_all("alice").await.unwrap();
    assert_eq!(staged.log(), ["invalidate"]);
}
