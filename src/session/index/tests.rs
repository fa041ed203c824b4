use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;

use super::*;
use crate::{
    MemoryStorage,
    session::token::TokenDigest,
    storage::{Capabilities, Charge, Invalidation, Lookup, Tags, Verdict},
};

const LIFE: Duration = Duration::from_secs(3_600);
const WHO: &str = "user 7";

fn member(number: usize) -> Member {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    Member { handle: Uuid::from_u128(number as u128), id: TokenDigest::from_bytes(id) }
}

fn node(storage: &AnyStorage) -> Index {
    Index::new(storage.clone(), Name::new("session"), LIFE)
}

fn on_memory() -> (AnyStorage, Index) {
    let storage = MemoryStorage::new().erase();
    let index = node(&storage);
    (storage, index)
}

async fn add(index: &Index, number: usize) {
    let added = index.add(WHO, member(number), None, IfFull::Grow).await.unwrap();
    assert_eq!(added, Added::Added);
}

async fn pages(index: &Index) -> Vec<Page> {
    let mut pages = vec![index.read(WHO, Cursor::START).await.unwrap()];
    while let Some(cursor) = pages.last().and_then(Page::next) {
        pages.push(index.read(WHO, cursor).await.unwrap());
    }
    pages
}

/// All members, each of which is there once.
async fn members(index: &Index) -> HashSet<Member> {
    let mut all = HashSet::new();
    for page in pages(index).await {
        assert!(page.members().len() <= CAPACITY);
        assert!(page.members().iter().all(|member| all.insert(*member)), "one is there twice");
    }
    all
}

fn expected(numbers: impl Iterator<Item = usize>) -> HashSet<Member> {
    numbers.map(member).collect()
}

/// Puts what is no bucket in the place of one.
async fn damage(storage: &AnyStorage, index: &Index, bucket: u32) {
    let put = Put::new(Bytes::from_static(b"kI\x01 damaged"), LIFE);
    assert!(matches!(
        storage.put(&index.key(WHO, bucket), put).await.unwrap(),
        PutOutcome::Stored(_)
    ));
}

fn assert_send<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn a_principal_of_any_text_has_members_of_its_own() {
    let (_storage, index) = on_memory();
    let long = "x".repeat(10_000);
    let names = ["", "a", "\0", "é\u{202e}", "a\0\0\0\0", &long];
    for (number, name) in names.iter().enumerate() {
        assert_send(index.add(name, member(number), None, IfFull::Ask)).await.unwrap();
    }
    for (number, name) in names.iter().enumerate() {
        let page = assert_send(index.read(name, Cursor::START)).await.unwrap();
        assert_eq!((page.members(), page.next()), (&[member(number)][..], None));
    }
    let page = index.read("nobody", Cursor::START).await.unwrap();
    assert_eq!((page.members(), page.version(), page.buckets()), (&[][..], None, 1));
}

#[tokio::test]
async fn a_handle_that_is_added_again_gets_its_new_id() {
    let (_storage, index) = on_memory();
    add(&index, 1).await;
    let renewed = Member { handle: member(1).handle, ..member(2) };
    index.add(WHO, renewed, None, IfFull::Grow).await.unwrap();
    assert_eq!(members(&index).await, HashSet::from([renewed]));
}

#[tokio::test]
async fn an_id_is_replaced_in_whatever_bucket_it_is_and_only_there() {
    let (_storage, index) = on_memory();
    for number in 0..150 {
        add(&index, number).await;
    }
    let first = index.read(WHO, Cursor::START).await.unwrap();
    for number in [0, 70, 149] {
        let renewed = Member { handle: member(number).handle, ..member(number + 1_000) };
        assert!(assert_send(index.replace(WHO, renewed, Some(first.clone()))).await.unwrap());
        assert!(members(&index).await.contains(&renewed));
    }
    assert!(!index.replace(WHO, member(5_000), Some(first)).await.unwrap());
    assert_eq!(members(&index).await.len(), 150);
}

#[tokio::test]
async fn only_who_still_has_the_id_that_was_seen_is_removed() {
    let (_storage, index) = on_memory();
    for number in 0..3 {
        add(&index, number).await;
    }
    let page = index.read(WHO, Cursor::START).await.unwrap();
    let renewed = Member { handle: member(1).handle, ..member(9) };
    assert!(index.replace(WHO, renewed, None).await.unwrap());
    assert_send(index.remove(WHO, page, &[member(0), member(1)])).await.unwrap();
    assert_eq!(members(&index).await, HashSet::from([renewed, member(2)]));
}

#[tokio::test]
async fn a_full_index_asks_who_is_dead_before_it_grows() {
    let (_storage, index) = on_memory();
    for number in 0..128 {
        add(&index, number).await;
    }
    let Added::Full(full) = index.add(WHO, member(128), None, IfFull::Ask).await.unwrap() else {
        panic!("there was no room");
    };
    let numbers: Vec<_> = full.iter().map(Page::number).collect();
    assert_eq!(numbers, [0, 1]);
    assert_eq!(members(&index).await.len(), 128, "nothing was added");
    let last = full.into_iter().next_back().unwrap();
    index.remove(WHO, last, &[member(100)]).await.unwrap();
    add(&index, 128).await;
    assert_eq!(pages(&index).await.len(), 2);
    add(&index, 129).await;
    assert_eq!(pages(&index).await.len(), 3);
    assert_eq!(members(&index).await, expected((0..130).filter(|n| *n != 100)));
}

#[tokio::test]
async fn ten_thousand_members_lie_in_bounded_buckets_and_are_let_go_again() {
    let (_storage, index) = on_memory();
    for number in 0..10_000 {
        add(&index, number).await;
    }
    assert_eq!(members(&index).await, expected(0..10_000));
    let all = pages(&index).await;
    assert_eq!(all.len(), 10_000_usize.div_ceil(CAPACITY));
    for page in all {
        let gone = page.members().to_vec();
        index.remove(WHO, page, &gone).await.unwrap();
    }
    assert_eq!(pages(&index).await.len(), 1);
    add(&index, 1).await;
    assert_eq!(members(&index).await, expected(1..2));
}

#[tokio::test(start_paused = true)]
async fn the_first_bucket_outlives_the_others() {
    let (_storage, index) = on_memory();
    for number in 0..64 {
        add(&index, number).await;
    }
    tokio::time::advance(LIFE / 2).await;
    add(&index, 64).await;
    tokio::time::advance(LIFE - Duration::from_secs(1)).await;
    assert!(members(&index).await.contains(&member(64)));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(members(&index).await.is_empty());
}

#[tokio::test]
async fn a_last_bucket_that_has_expired_is_let_go() {
    let (storage, index) = on_memory();
    for number in 0..65 {
        add(&index, number).await;
    }
    storage.delete(&index.key(WHO, 1), When::Always).await.unwrap();
    let last = pages(&index).await.pop().unwrap();
    assert!(last.is_idle());
    index.remove(WHO, last, &[]).await.unwrap();
    assert_eq!(pages(&index).await.len(), 1);
}

#[tokio::test]
async fn damaged_buckets_count_as_empty_and_heal() {
    let (storage, index) = on_memory();
    for number in 0..65 {
        add(&index, number).await;
    }
    damage(&storage, &index, 1).await;
    assert_eq!(members(&index).await, expected(0..64));
    add(&index, 65).await;
    assert_eq!(members(&index).await, expected((0..64).chain([65])));

    damage(&storage, &index, 0).await;
    assert!(members(&index).await.is_empty());
    let admitted = index.admit(WHO, member(66), 1, None).await.unwrap();
    assert_eq!(admitted, Admission::Added);
    assert_eq!(members(&index).await, expected(66..67));
    for number in 67..131 {
        add(&index, number).await;
    }
    assert_eq!(members(&index).await, expected(65..131), "what was lost with the first is found");
}

#[tokio::test]
async fn who_counts_down_notices_who_adds_meanwhile() {
    let (storage, index) = on_memory();
    for number in 0..65 {
        add(&index, number).await;
    }
    let last = pages(&index).await.pop().unwrap();
    index
        .edit(WHO, last, |bucket| {
            bucket.retain(|_| false);
            true
        })
        .await
        .unwrap();
    // Counting down has read the first bucket and found the last one empty; now another adds.
    let mut first = index.read(WHO, Cursor::START).await.unwrap();
    first.bucket.buckets = 1;
    add(&node(&storage), 65).await;
    assert!(index.store(WHO, first).await.unwrap().is_err());
    assert_eq!(members(&index).await, expected((0..64).chain([65])));
}

#[tokio::test]
async fn over_the_cap_somebody_has_to_go() {
    let (_storage, index) = on_memory();
    for number in 0..2 {
        assert_eq!(index.admit(WHO, member(number), 2, None).await.unwrap(), Admission::Added);
    }
    let Admission::OverCap(page) = index.admit(WHO, member(2), 2, None).await.unwrap() else {
        panic!("the cap was reached");
    };
    assert_eq!(page.members(), [member(0), member(1)]);
    let too_few = index.replace_members(WHO, page.clone(), &[], member(2), 2).await.unwrap();
    assert_eq!(too_few, Swap::Conflict(page.clone()));
    let oldest = [page.members()[0].handle];
    let swap = |member| index.replace_members(WHO, page.clone(), &oldest, member, 2);
    assert_eq!(assert_send(swap(member(2))).await.unwrap(), Swap::Swapped);
    let Swap::Conflict(now) = swap(member(3)).await.unwrap() else { panic!("it has changed") };
    assert_eq!(now.members(), [member(1), member(2)]);
    // Who is there already has room.
    assert_eq!(index.admit(WHO, member(2), 2, Some(now)).await.unwrap(), Admission::Added);
    assert_eq!(members(&index).await, expected(1..3));
}

async fn a_thousand_adds_of_two_nodes(storage: AnyStorage) {
    let nodes = [node(&storage), node(&storage)];
    let tasks: Vec<_> = (0..1_000)
        .map(|number| {
            let index = nodes[number % 2].clone();
            tokio::spawn(async move { add(&index, number).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(members(&nodes[0]).await, expected(0..1_000));
    assert_eq!(pages(&nodes[1]).await.len(), 1_000_usize.div_ceil(CAPACITY));
}

async fn adds_that_race_removes(storage: AnyStorage, count: usize) {
    let nodes = [node(&storage), node(&storage)];
    for number in 0..count {
        add(&nodes[0], number).await;
    }
    let adding = (0..count).map(|number| {
        let index = nodes[number % 2].clone();
        tokio::spawn(async move { add(&index, 10_000 + number).await })
    });
    let adding: Vec<_> = adding.collect();
    let removing = nodes.clone().map(|index| {
        tokio::spawn(async move {
            // Removers go on until none of the first is left: pages come and go meanwhile.
            loop {
                let mut left = false;
                for page in pages(&index).await {
                    let old = |member: &&Member| member.handle.as_u128() < 10_000;
                    let gone: Vec<_> = page.members().iter().filter(old).copied().collect();
                    if !gone.is_empty() || page.is_idle() {
                        left |= !gone.is_empty();
                        index.remove(WHO, page, &gone).await.unwrap();
                    }
                }
                if !left {
                    break;
                }
            }
        })
    });
    for task in adding.into_iter().chain(removing) {
        task.await.unwrap();
    }
    assert_eq!(members(&nodes[0]).await, expected(10_000..10_000 + count));
}

async fn racing_logins_keep_the_cap(storage: AnyStorage) {
    const CAP: usize = 5;
    let nodes = [node(&storage), node(&storage)];
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let index = nodes[number % 2].clone();
            tokio::spawn(async move {
                let mut page = None;
                loop {
                    match index.admit(WHO, member(number), CAP, page).await.unwrap() {
                        Admission::Added => return,
                        Admission::OverCap(full) => {
                            assert!(full.members().len() <= CAP);
                            let oldest = [full.members()[0].handle];
                            let swap =
                                index.replace_members(WHO, full, &oldest, member(number), CAP);
                            match swap.await.unwrap() {
                                Swap::Swapped => return,
                                Swap::Conflict(now) => page = Some(now),
                            }
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(members(&nodes[0]).await.len(), CAP);
    assert_eq!(pages(&nodes[0]).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_in_memory_lose_nobody_and_keep_the_cap() {
    a_thousand_adds_of_two_nodes(MemoryStorage::new().erase()).await;
    adds_that_race_removes(MemoryStorage::new().erase(), 500).await;
    racing_logins_keep_the_cap(MemoryStorage::new().erase()).await;
}

/// Counts the trips, and may hold what is not an entry.
#[derive(Debug)]
struct Counted {
    storage: AnyStorage,
    foreign: AtomicBool,
    gets: Arc<AtomicUsize>,
    puts: Arc<AtomicUsize>,
}

#[deny(clippy::missing_trait_methods)]
impl Storage for Counted {
    async fn get(&self, key: &Key, get: Get) -> Result<Lookup> {
        self.gets.fetch_add(1, SeqCst);
        if self.foreign.load(SeqCst) {
            return Err(Error::new(ErrorKind::Corrupt, "not an entry"));
        }
        self.storage.get(key, get).await
    }

    async fn put(&self, key: &Key, put: Put<'_>) -> Result<PutOutcome> {
        self.puts.fetch_add(1, SeqCst);
        if self.foreign.load(SeqCst) && put.when != When::Always {
            return Err(Error::new(ErrorKind::Corrupt, "not an entry"));
        }
        self.foreign.store(false, SeqCst);
        self.storage.put(key, put).await
    }

    async fn delete(&self, _: &Key, _: When) -> Result<bool> {
        panic!("the index deletes nothing")
    }

    async fn invalidate(&self, _: &Name, _: Tags<'_>, _: Invalidation) -> Result<()> {
        panic!("the index invalidates nothing")
    }

    async fn acquire(&self, _: &[Charge<'_>]) -> Result<Vec<Verdict>> {
        panic!("the index charges nothing")
    }

    fn capabilities(&self) -> Capabilities {
        self.storage.capabilities()
    }

    fn erase(self) -> AnyStorage {
        AnyStorage::new(self)
    }
}

fn counted(foreign: bool) -> (AnyStorage, Counted) {
    let storage = MemoryStorage::new().erase();
    let foreign = AtomicBool::new(foreign);
    let (gets, puts) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    (storage.clone(), Counted { storage, foreign, gets, puts })
}

#[tokio::test]
async fn what_is_not_an_entry_counts_as_empty_and_is_replaced() {
    let index = node(&counted(true).1.erase());
    assert!(members(&index).await.is_empty());
    add(&index, 1).await;
    assert_eq!(members(&index).await, expected(1..2));

    let sound = Index::new(MemoryStorage::new().erase(), Name::new("session"), LIFE);
    let page = sound.read(WHO, Cursor::START).await.unwrap();
    let index = node(&counted(true).1.erase());
    // It got there after the page was read.
    index.add(WHO, member(2), Some(page), IfFull::Ask).await.unwrap();
    assert_eq!(members(&index).await, expected(2..3));
}

#[tokio::test]
async fn trips_are_as_many_as_promised() {
    let (storage, counted) = counted(false);
    let (gets, puts) = (Arc::clone(&counted.gets), Arc::clone(&counted.puts));
    let index = node(&counted.erase());
    let trips = || (gets.swap(0, SeqCst), puts.swap(0, SeqCst));

    let page = index.read(WHO, Cursor::START).await.unwrap();
    assert_eq!(trips(), (1, 0));
    index.add(WHO, member(0), Some(page.clone()), IfFull::Ask).await.unwrap();
    assert_eq!(trips(), (0, 1), "with the page");
    index.add(WHO, member(1), Some(page), IfFull::Ask).await.unwrap();
    assert_eq!(trips(), (0, 2), "with a page that has changed");
    index.add(WHO, member(2), None, IfFull::Ask).await.unwrap();
    assert_eq!(trips(), (1, 1), "without the page");
    let page = index.read(WHO, Cursor::START).await.unwrap();
    trips();
    index.admit(WHO, member(3), 5, Some(page)).await.unwrap();
    assert_eq!(trips(), (0, 1));
    let page = index.read(WHO, Cursor::START).await.unwrap();
    trips();
    index.replace_members(WHO, page, &[member(0).handle], member(4), 5).await.unwrap();
    assert_eq!(trips(), (0, 1));
    let page = index.read(WHO, Cursor::START).await.unwrap();
    trips();
    index.replace(WHO, member(4), Some(page.clone())).await.unwrap();
    assert_eq!(trips(), (0, 1));
    index.remove(WHO, page, &[member(9)]).await.unwrap();
    assert_eq!(trips(), (0, 0), "nothing to remove");

    for number in 10..70 {
        add(&node(&storage), number).await;
    }
    let full = index.read(WHO, Cursor::START).await.unwrap();
    trips();
    index.add(WHO, member(71), Some(full.clone()), IfFull::Grow).await.unwrap();
    assert_eq!(trips(), (1, 2), "the second bucket");
    let full = index.read(WHO, Cursor::START).await.unwrap();
    trips();
    index.add(WHO, member(72), Some(full), IfFull::Ask).await.unwrap();
    assert_eq!(trips(), (1, 2), "into the last bucket");
    for number in 73..135 {
        add(&node(&storage), number).await;
    }
    let full = index.read(WHO, Cursor::START).await.unwrap();
    trips();
    index.add(WHO, member(135), Some(full), IfFull::Grow).await.unwrap();
    assert_eq!(trips(), (2, 2), "the third bucket");
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use crate::{RedisStorage, storage::redis::tests::support::RedisServer};

    const LONG: Duration = Duration::from_secs(30);

    async fn connect(server: &RedisServer) -> AnyStorage {
        RedisStorage::builder()
            .url(server.url())
            .secret("a secret for the index")
            .decision_deadline(LONG)
            .entry_deadline(LONG)
            .build()
            .await
            .unwrap()
            .erase()
    }

    #[tokio::test]
    async fn adds_of_two_nodes_are_all_there() {
        let server = RedisServer::start_unix();
        a_thousand_adds_of_two_nodes(connect(&server).await).await;
    }

    #[tokio::test]
    async fn adds_and_removes_lose_nobody() {
        let server = RedisServer::start_unix();
        adds_that_race_removes(connect(&server).await, 300).await;
    }

    #[tokio::test]
    async fn logins_keep_the_cap() {
        let server = RedisServer::start_unix();
        racing_logins_keep_the_cap(connect(&server).await).await;
    }
}
