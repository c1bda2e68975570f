import APIServerDouble
import Foundation
import KubernetesObjects
import LocalAPI
import Testing

@testable import ClusterSource

/// The whole way from an API server's socket to the account of its objects: TLS, authentication, lists, watches.
@Suite("Following an API server") struct APIServerSourceTests {
  /// A double by TLS, what it is reached with, and where its files are.
  private final class Cluster: Sendable {
    let folder: TestFolder
    let certificates: TestCertificates
    let double: APIServerDouble
    let options: APIServerDouble.Options

    init(_ change: (inout APIServerDouble.Options) -> Void = { _ in }) throws {
      folder = try TestFolder()
      certificates = try TestCertificates(folder: folder.path)
      try folder.write("token", "first\n")
      var options = APIServerDouble.Options()
      options.certificate = certificates.serverCertificate
      options.key = certificates.serverKey
      options.tokens = ["first"]
      options.bookmarkInterval = .milliseconds(100)
      change(&options)
      self.options = options
      double = APIServerDouble(options)
    }

    func access(port: Int, host: String = "127.0.0.1") throws -> APIServerAccess {
      var access = APIServerAccess(servers: [try #require(APIServerURL("https://\(host):\(port)"))])
      access.trust = .authorities(.file(certificates.authorities))
      access.token = .file("\(folder.path)/token")
      return access
    }

    /// Something of each kind.
    func fill() throws {
      let store = double.store
      for number in 0..<1200 {
        try store.put(Sample.service("s\(number)"), .service)
        try store.put(
          Sample.slice("s\(number)-a", service: "s\(number)", addresses: ["10.244.1.\(number % 200 + 1)"]),
          .endpointSlice)
      }
      try store.put(
        Sample.slice("h", service: "h", labels: ["service.kubernetes.io/headless": ""], addresses: ["10.244.1.9"]),
        .endpointSlice)
      try store.put(Sample.namespace("shop", labels: ["team": "a"]), .namespace)
      try store.put(Sample.pod("web-1", ip: "10.244.1.9"), .pod)
      try store.put(
        [
          "metadata": ["name": "node-1"], "spec": ["podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]],
          "status": ["addresses": [["type": "InternalIP", "address": "192.168.0.1"]]],
        ], .node)
      try store.put(
        [
          "metadata": ["name": "deny", "namespace": "shop"],
          "spec": [
            "podSelector": ["matchLabels": ["app": "web"]], "policyTypes": ["Ingress"],
            "ingress": [["from": [["namespaceSelector": [:]]], "ports": [["protocol": "TCP", "port": 8080]]]],
          ],
        ], .networkPolicy)
      try store.put(["metadata": ["name": "kubernetes"], "spec": ["cidrs": ["10.96.0.0/12"]]], .serviceCIDR)
    }
  }

  @Test("an Event on the Node is written, with a newer token where the one at hand has expired")
  func events() async throws {
    let cluster = try Cluster()
    let port = try await cluster.double.start()
    cluster.double.store.addDefaultNamespace()
    // The first of two servers is not there.
    var access = try cluster.access(port: port)
    access.servers.insert(try #require(APIServerURL("https://127.0.0.1:1")), at: 0)
    let writer = NodeEventWriter(access, node: "node-1", component: "sluice-agent")
    let started = NodeEvent("SluiceStarted", "It began.")
    try await writer.write(started)
    try await writer.write(started)
    cluster.double.setTokens(["second"])
    let refusal = await #expect(throws: APIStatus.self) {
      try await writer.write(NodeEvent("Lost", "Nobody hears it."))
    }
    #expect(refusal?.code == 401)
    try cluster.folder.write("token", "second")
    let long = String(repeating: "why? ", count: 1000)
    try await writer.write(NodeEvent("SluiceStopped", long, isWarning: true))
    let events = cluster.double.store.objects(.event).values.sorted {
      $0["reason"]?.stringValue ?? "" < $1["reason"]?.stringValue ?? ""
    }
    #expect(events.map { $0["type"] } == ["Normal", "Warning"])
    #expect(events.map { $0["involvedObject"]?["name"] } == ["node-1", "node-1"])
    #expect(events.first?["message"] == "It began.")
    #expect(events.last?["message"]?.stringValue?.utf8.count ?? 9999 <= 1024)
    await cluster.double.stop()
  }

  @Test(
    "lists and watches, by protobuf and JSON, with and without lists as watches", arguments: [true, false],
    [true, false])
  func follow(_ protobuf: Bool, _ streamsLists: Bool) async throws {
    let cluster = try Cluster {
      $0.servesProtobuf = protobuf
      $0.streamsLists = streamsLists
    }
    try cluster.fill()
    let following = Following(try cluster.access(port: try await cluster.double.start()))
    let store = cluster.double.store
    let wanted = Sample.expected(store)
    #expect(wanted.count == 2405)
    let first = try await following.account.until("the first list") { $0.isSynced }
    #expect(first.objects == wanted)
    #expect(first.problems.isEmpty)
    #expect(!first.isRemembered)

    let before = cluster.double.counts
    try store.put(Sample.service("s7", port: 81), .service)
    try store.delete(.pod, .init("shop", "web-1"))
    try store.put(Sample.slice("new", service: "s7", addresses: ["10.244.1.77"]), .endpointSlice)
    // It becomes one that is not asked for, which is as good as gone.
    try store.put(
      Sample.slice("s8-a", service: "s8", labels: ["service.kubernetes.io/headless": ""], addresses: ["10.244.1.9"]),
      .endpointSlice)
    let changed = Sample.expected(store)
    let after = try await following.account.until("the changes") { $0.objects == changed }
    #expect(after.changes == first.changes + 4)
    // By watches that were there already.
    #expect(cluster.double.counts.pages == before.pages)
    #expect(after.reach == .following)
    if !streamsLists { #expect(cluster.double.counts.lists == 7) }
    // Of most kinds nothing was heard but a bookmark.
    let version = store.announce()
    try await following.reached(version)
    await following.stop()
    await cluster.double.stop()
  }

  @Test("a token that expires is read again; one that is not good is told of, and what is known stays")
  func tokens() async throws {
    let cluster = try Cluster { $0.bookmarkInterval = .seconds(60) }
    try cluster.fill()
    let relay = try FaultyRelay(to: try await cluster.double.start())
    let following = Following(try cluster.access(port: Int(relay.port)), hurry: 20)
    try await following.account.until("the first list") { $0.isSynced }
    cluster.double.setTokens(["second"])
    relay.tearAll()
    try await following.account.until("being refused") { $0.reasons.contains { $0.contains("401") } }
    #expect(following.account.now.objects.count == 2405)
    try cluster.folder.write("token", "second\n")
    try cluster.double.store.put(Sample.service("later"), .service)
    try await following.account.until("the change after") {
      $0.objects[serviceID("later")] != nil && $0.reach == .following
    }
    await following.stop()
    relay.stop()
    await cluster.double.stop()
  }

  @Test("a client's certificate is taken, and read again where it is exchanged")
  func certificates() async throws {
    let cluster = try Cluster { options in options.tokens = [] }
    var options = cluster.options
    options.clientAuthorities = cluster.certificates.authorities
    let double = APIServerDouble(options)
    try double.store.put(Sample.service("a"), .service)
    let relay = try FaultyRelay(to: try await double.start())
    var access = try cluster.access(port: Int(relay.port))
    access.token = nil
    access.certificate = .file(cluster.certificates.clientCertificate)
    access.key = .file(cluster.certificates.clientKey)
    let following = Following(access, hurry: 20)
    try await following.account.until("the first list") { $0.isSynced && $0.objects.count == 1 }
    // One of other authorities, with the name of ours: it must be the new file that is shown.
    let other = try TestFolder()
    let strangers = try TestCertificates(folder: other.path)
    let own = try (
      Data(contentsOf: URL(fileURLWithPath: cluster.certificates.clientCertificate)),
      Data(contentsOf: URL(fileURLWithPath: cluster.certificates.clientKey))
    )
    for (from, to) in [
      (strangers.clientCertificate, cluster.certificates.clientCertificate),
      (strangers.clientKey, cluster.certificates.clientKey),
    ] {
      try Data(contentsOf: URL(fileURLWithPath: from)).write(to: URL(fileURLWithPath: to), options: .atomic)
    }
    relay.tearAll()
    try await following.account.until("being refused") { $0.reach != .following && $0.reach != nil }
    try own.0.write(to: URL(fileURLWithPath: cluster.certificates.clientCertificate), options: .atomic)
    try own.1.write(to: URL(fileURLWithPath: cluster.certificates.clientKey), options: .atomic)
    try double.store.put(Sample.service("b"), .service)
    try await following.account.until("the change after") { $0.objects.count == 2 && $0.reach == .following }
    await following.stop()
    relay.stop()
    await double.stop()
  }

  @Test("no server is believed that cannot prove its name; a name of its own can be asked for")
  func trust() async throws {
    let cluster = try Cluster()
    try cluster.double.store.put(Sample.service("a"), .service)
    // Its address alone would do.
    try cluster.certificates.issue("server", "/CN=kube-apiserver", "subjectAltName=DNS:localhost,DNS:kubernetes")
    let port = try await cluster.double.start()
    let stranger = try TestFolder()
    let strangers = try TestCertificates(folder: stranger.path)
    func connect(_ change: (inout APIServerAccess) -> Void) async throws -> Account.State {
      var access = try cluster.access(port: port)
      change(&access)
      let following = Following(access)
      defer { Task { await following.stop() } }
      return try await following.account.until("an end") { $0.isSynced || $0.reach != nil }
    }
    let unknown = try await connect { $0.trust = .authorities(.file(strangers.authorities)) }
    #expect(!unknown.isSynced)
    #expect(unknown.reasons.first?.contains("TLS") == true, "\(unknown.reasons)")
    let noName = try await connect { _ in }
    #expect(!noName.isSynced)
    #expect(noName.reasons.first?.contains("TLS") == true, "\(noName.reasons)")
    let wrongName = try await connect { $0.serverName = "example.org" }
    #expect(!wrongName.isSynced)
    #expect(wrongName.reasons.first?.contains("TLS") == true, "\(wrongName.reasons)")
    #expect(try await connect { $0.serverName = "kubernetes" }.isSynced)
    #expect(
      try await connect {
        $0.trust = .anyone
        $0.serverName = "example.org"
      }.isSynced)
    await cluster.double.stop()
  }

  @Test("where a server does not answer, the next one is asked, and the one after it where that one goes")
  func failover() async throws {
    let cluster = try Cluster()
    try cluster.fill()
    let other = APIServerDouble(cluster.options, store: cluster.double.store)
    let ports = (try await cluster.double.start(), try await other.start())
    let closed = try FaultyRelay(to: 1)
    var access = try cluster.access(port: Int(closed.port))
    access.servers += try [ports.0, ports.1].map { try #require(APIServerURL("https://localhost:\($0)")) }
    let following = Following(access, hurry: 20)
    try await following.account.until("the first list") { $0.isSynced && $0.objects.count == 2405 }
    await cluster.double.stop()
    try other.store.put(Sample.service("later"), .service)
    try await following.account.until("the change after") { $0.objects[serviceID("later")] != nil }
    #expect(other.counts.watches >= 7)
    #expect(following.account.now.changes == 2406)
    await following.stop()
    closed.stop()
    await other.stop()
  }

  @Test("a connection that says nothing any more is given up, and the next one is another")
  func halfOpen() async throws {
    let cluster = try Cluster()
    try cluster.fill()
    let relay = try FaultyRelay(to: try await cluster.double.start())
    // Of a hundred bookmarks one comes in time, however long the other tests keep this one's tasks waiting.
    let limits = HTTPSession.Limits(connect: .seconds(2), silence: .seconds(10))
    let following = Following(try cluster.access(port: Int(relay.port)), limits: limits, hurry: 20)
    try await following.account.until("the first list") { $0.isSynced }
    try await Task.sleep(for: .seconds(11))
    // Bookmarks alone keep it.
    #expect(following.account.now.reasons.isEmpty)
    let before = relay.counts.accepted
    relay.setSilent(true)
    try cluster.double.store.put(Sample.service("later"), .service)
    try await following.account.until("noticing", seconds: 60) { !$0.reasons.isEmpty }
    #expect(following.account.now.reasons.first?.contains("no longer answers") == true)
    relay.setSilent(false)
    try await following.account.until("the change after") {
      $0.objects[serviceID("later")] != nil && $0.reach == .following
    }
    #expect(relay.counts.accepted > before)
    await following.stop()
    relay.stop()
    await cluster.double.stop()
  }

  @Test("with no server, what an earlier agent knew is in force after a while, and healed by the server that comes")
  func journal() async throws {
    let cluster = try Cluster()
    try cluster.fill()
    let journal = try TestFolder()
    let port = try await cluster.double.start()
    let access = try cluster.access(port: port)
    let first = Following(access, journal: journal.path)
    try await first.account.until("the first list") { $0.isSynced }
    try cluster.double.store.put(Sample.service("s3", port: 83), .service)
    try cluster.double.store.delete(.service, .init("shop", "s4"))
    let known = Sample.expected(cluster.double.store)
    try await first.account.until("the changes") { $0.objects == known }
    await first.stop()
    await cluster.double.stop()

    let second = Following(access, journal: journal.path, patience: .milliseconds(300))
    let restored = try await second.account.until("the memory") { $0.isSynced }
    #expect(restored.isRemembered && restored.objects == known)
    #expect(restored.problems.isEmpty)
    // What happened meanwhile, to objects that the list must take away, change and bring.
    let store = cluster.double.store
    try store.delete(.service, .init("shop", "s5"))
    try store.put(Sample.service("s6", port: 86), .service)
    try store.put(Sample.service("later"), .service)
    let back = APIServerDouble(cluster.options, store: store)
    _ = try await back.start(port: port)
    let wanted = Sample.expected(store)
    let healed = try await second.account.until("the list", seconds: 40) {
      $0.objects == wanted && $0.reach == .following
    }
    #expect(healed.changes == restored.changes + 3)
    await second.stop()
    await back.stop()

    // Another cluster's memory is none.
    let stranger = try TestFolder()
    var elsewhere = access
    elsewhere.trust = .authorities(.file(try TestCertificates(folder: stranger.path).authorities))
    let third = Following(elsewhere, journal: journal.path, patience: .milliseconds(100))
    try await Task.sleep(for: .seconds(1))
    #expect(!third.account.now.isSynced && third.account.now.objects.isEmpty)
    await third.stop()
  }

  @Test("after an outage, when one kind gets through, the others do not wait out their time")
  func together() async throws {
    let cluster = try Cluster()
    try cluster.double.store.put(Sample.service("a"), .service)
    let port = try await cluster.double.start()
    let following = Following(try cluster.access(port: port))
    try await following.account.until("the lists") { $0.isSynced && $0.reach == .following }
    await cluster.double.stop()
    // By now waits are of 3 to 13 s, each kind's its own.
    try await Task.sleep(for: .seconds(8))
    let back = APIServerDouble(cluster.options, store: cluster.double.store)
    _ = try await back.start(port: port)
    while back.counts.watches == 0 { try await Task.sleep(for: .milliseconds(1)) }
    let first = ContinuousClock.now
    try await following.account.until("all of them") { $0.reach == .following }
    #expect(ContinuousClock.now - first < .seconds(1.5))
    await following.stop()
    await back.stop()
  }

  @Test("an older server has no ServiceCIDRs: there are none")
  func unserved() async throws {
    let cluster = try Cluster { $0.unserved = ["ServiceCIDR"] }
    try cluster.double.store.put(Sample.service("a"), .service)
    let following = Following(try cluster.access(port: try await cluster.double.start()))
    let state = try await following.account.until("the lists") { $0.isSynced && $0.reach != nil }
    #expect(state.objects.count == 1 && state.reach == .following)
    await following.stop()
    await cluster.double.stop()
  }
}
