//! Peers that do not read, write slowly, or ask without end.

use super::*;

#[tokio::test(start_paused = true)]
async fn p1_slow_reader_is_closed_after_the_write_deadline_and_others_are_served() {
    let (provider, worker, client, network) = pair(|builder| builder.unwritten_bytes_max(8 << 20)).await;
    client.echo("here".to_owned()).await.unwrap();
    let mut peer = network.connect(provider.local_addr()).await.unwrap();
    let mut out = BytesMut::new();
    frame::hello(&mut out, &raw::hello(None));
    peer.write.write_all(&out).await.unwrap();
    let blob = |id| raw::request_of("test.Work", id, "blob", b"\x91\xce\x00\x10\x00\x00", None);
    // A gigabyte is asked for and none of it is read.
    for id in 0..1024 {
        peer.write.write_all(&blob(id)).await.unwrap();
    }
    until(|| worker.started() >= 4).await;
    let start = Instant::now();
    client.echo("fast".to_owned()).await.unwrap();
    assert!(
        worker.started() <= 10,
        "{} answers of a megabyte are held",
        worker.started()
    );
    while provider.connections() > 1 {
        assert!(start.elapsed() < Duration::from_secs(11), "{:?}", start.elapsed());
        sleep(Duration::from_millis(100)).await;
        client.echo("fast".to_owned()).await.unwrap();
    }
    assert!(start.elapsed() >= Duration::from_secs(9), "{:?}", start.elapsed());
    until(|| provider.running() == 0).await;
}

/// Sends `bytes` one by one, one each five seconds, until the provider closes; how long that took.
async fn dribble(network: &Memory, address: &str, bytes: &[u8]) -> Duration {
    let mut peer = network.connect(address).await.unwrap();
    let start = Instant::now();
    for byte in bytes {
        let mut one = [0];
        tokio::select! {
            read = peer.read.read(&mut one) => {
                assert_eq!(read.unwrap(), 0, "a provider never speaks unasked");
                return start.elapsed();
            }
            () = sleep(Duration::from_secs(5)) => {}
        }
        if peer.write.write_all(&[*byte]).await.is_err() {
            return start.elapsed();
        }
    }
    panic!("never closed");
}

#[tokio::test(start_paused = true)]
async fn p2_slow_writer_is_closed_in_handshake_header_and_body() {
    let (provider, _, client, network) = pair(|builder| builder.token("secret")).await;
    drop(client);
    let address = provider.local_addr().to_owned();
    let mut hello = BytesMut::new();
    frame::hello(&mut hello, &raw::hello(Some("secret")));
    let took = dribble(&network, &address, &hello).await;
    assert!(took <= Duration::from_secs(10), "handshake: {took:?}");

    let (provider, _, client, network) = pair(|builder| builder).await;
    let address = provider.local_addr().to_owned();
    let request = raw::request(1, "echo", &[0x91; 900], None);
    let took = dribble(&network, &address, &request).await;
    assert!(took <= Duration::from_secs(25), "header: {took:?}");
    // The header at once, the body byte by byte.
    let mut peer = network.connect(&address).await.unwrap();
    peer.write.write_all(&request[..60]).await.unwrap();
    let start = Instant::now();
    for byte in &request[60..] {
        sleep(Duration::from_secs(5)).await;
        if peer.write.write_all(&[*byte]).await.is_err() {
            break;
        }
    }
    let took = start.elapsed();
    assert!(took <= Duration::from_secs(25), "body: {took:?}");
    client.echo("undisturbed".to_owned()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn large_request_over_a_slow_line_is_not_taken_for_a_slow_writer() {
    let (provider, worker, _, network) = pair(|builder| builder).await;
    let mut peer = network.connect(provider.local_addr()).await.unwrap();
    let mut params = b"\x92\x01\xc5\xff\xff".to_vec();
    params.resize(params.len() + 0xffff, 0);
    let request = raw::request_of("test.Work", 1, "nap", &params, None);
    // Ten minutes for 64 KiB.
    for piece in request.chunks(546) {
        peer.write.write_all(piece).await.unwrap();
        sleep(Duration::from_secs(5)).await;
    }
    let mut byte = [0];
    assert_eq!(peer.read.read(&mut byte).await.unwrap(), 1, "it is answered");
    assert!(worker.started() <= 1);
}

#[tokio::test]
async fn p7_requests_without_end_are_refused_typed_and_others_are_served() {
    let (provider, worker, client, network) = pair(|builder| builder.connection_in_flight_max(100)).await;
    let peer = network.connect(provider.local_addr()).await.unwrap();
    let mut flood = BytesMut::new();
    for id in 0..20_000 {
        flood.extend_from_slice(&raw::request_of("test.Work", id, "hold", b"\x90", None));
    }
    let mut peers = JoinSet::new();
    let (mut write, mut read) = (peer.write, peer.read);
    peers.spawn(async move {
        write.write_all(&flood).await.unwrap();
        std::future::pending::<()>().await;
    });
    // All but the hundred that run are refused, each in words and as not executed.
    peers.spawn(async move {
        let (mut decoder, mut buffer) = (frame::Decoder::new(1 << 24), BytesMut::new());
        let mut refused = 0;
        while refused < 19_900 {
            assert_ne!(
                read.read_buf(&mut buffer).await.unwrap(),
                0,
                "{refused} are refused"
            );
            while let Some(frame) = decoder.next(&mut buffer).unwrap() {
                let (code, executed) = raw::failure(&frame);
                assert_eq!((code, executed), (Code::Overloaded.number(), 0));
                refused += 1;
            }
        }
    });
    until(|| worker.started() == 100).await;
    for _ in 0..200 {
        assert_eq!(client.echo("fair".to_owned()).await.unwrap(), "fair");
    }
    assert_eq!((worker.started(), provider.running()), (100, 100));
    let refused = tokio::time::timeout(Duration::from_secs(60), peers.join_next()).await;
    refused.expect("all are answered").unwrap().unwrap();
    assert_eq!((worker.started(), provider.running()), (100, 100));
    worker.gate.add_permits(100);
}

#[tokio::test(start_paused = true)]
async fn connections_without_end_from_one_address_leave_room_for_others() {
    let (provider, _, client, network) =
        pair(|builder| builder.connections_max(6).address_connections_max(3)).await;
    client.echo("first".to_owned()).await.unwrap();
    let (mut peers, far) = (Vec::new(), network.seen_from("10.0.0.9"));
    for _ in 0..20 {
        peers.push(far.connect(provider.local_addr()).await.unwrap());
    }
    until(|| provider.connections() == 4).await;
    let mut closed = 0;
    for peer in &mut peers {
        // Those that were let in stay silent.
        let read = tokio::time::timeout(Duration::from_secs(1), peer.read.read(&mut [0])).await;
        closed += usize::from(matches!(read, Ok(Ok(0))));
    }
    assert_eq!((closed, provider.connections()), (17, 4));
    let second = self::client(&provider, &network, None).await;
    second.echo("another address".to_owned()).await.unwrap();
    // A place that becomes free is given to the same address again.
    drop(peers);
    until(|| provider.connections() == 2).await;
    let mut again = far.connect(provider.local_addr()).await.unwrap();
    let mut hello = BytesMut::new();
    frame::hello(&mut hello, &raw::hello(None));
    again.write.write_all(&hello).await.unwrap();
    assert_eq!(again.read.read(&mut [0]).await.unwrap(), 1, "it is answered");
}
