import DataplaneModel
import KubernetesObjects
import NetworkTypes
import Testing

@testable import ProxyAgent

@Suite("The ring of events") struct EventRingTests {
  private static func event(_ number: Int, _ kind: PolicyEvent.Kind = .drop) -> PolicyEvent {
    var event = PolicyEvent(time: .init(seconds: UInt64(1000 + number), microseconds: 0), kind: kind)
    event.length = number
    event.reason = DropReason.policyDenied.rawValue
    return event
  }

  private static func side(_ address: String, _ pod: String? = nil) throws -> PolicyEvent.Side {
    var side = PolicyEvent.Side(address: try #require(IPAddress(address)), kind: pod == nil ? "world" : "pod")
    side.pod = pod.map { ObjectKey(namespace: "shop", name: $0) }
    return side
  }

  private func all(_ reader: EventRing.Reader) async -> [PolicyEvent] {
    var result: [PolicyEvent] = []
    while let events = await reader.next(limit: 3) {
      #expect(events.count <= 4)
      result += events
    }
    return result
  }

  @Test("without following, a reader gets what there is and ends")
  func history() async {
    let ring = EventRing(capacity: 10)
    #expect(await all(ring.reader(last: nil, follows: false)) == [])
    ring.append((0..<7).map { Self.event($0) })
    let reader = ring.reader(last: nil, follows: false)
    ring.append([Self.event(7)])
    #expect(await all(reader).map(\.length) == Array(0..<7))
    #expect(await all(ring.reader(last: 3, follows: false)).map(\.length) == [5, 6, 7])
    #expect(await all(ring.reader(last: 0, follows: false)) == [])
    #expect(await all(ring.reader(last: 100, follows: false)).map(\.length) == Array(0..<8))
  }

  @Test("the oldest events give way; a reader that comes later is not told of them")
  func overflow() async {
    let ring = EventRing(capacity: 4)
    ring.append((0..<10).map { Self.event($0) })
    #expect(await all(ring.reader(last: nil, follows: false)).map(\.length) == [6, 7, 8, 9])
    #expect(ring.counts.byKind[.drop] == 10)
    #expect(ring.counts.lost == 0)
  }

  @Test("a slow reader goes on with what is left and is told how many events it missed")
  func slow() async throws {
    let ring = EventRing(capacity: 4)
    let reader = ring.reader(last: nil, follows: true)
    ring.append([Self.event(0)])
    #expect(await reader.next()?.map(\.length) == [0])
    ring.append((1..<11).map { Self.event($0) })
    let events = try #require(await reader.next())
    #expect(events.map(\.kind) == [.lost, .drop, .drop, .drop, .drop])
    #expect(events.first?.count == 6)
    #expect(events.first?.lost == 6)
    #expect(events.dropFirst().map(\.length) == [7, 8, 9, 10])
    ring.append([Self.event(11)])
    // What it missed is in its own total from then on.
    #expect(await reader.next()?.map(\.lost) == [6])
    // Nobody else is concerned.
    #expect(await all(ring.reader(last: 1, follows: false)).map(\.lost) == [0])
  }

  @Test("what was lost before it came here is an event, and in every later event's total")
  func lost() async {
    let ring = EventRing(capacity: 10)
    ring.noteLost(0, at: .init(seconds: 1, microseconds: 0))
    ring.append([Self.event(0)])
    ring.noteLost(5, at: .init(seconds: 2, microseconds: 0))
    ring.append([Self.event(1, .audit)])
    ring.noteLost(2, at: .init(seconds: 3, microseconds: 0))
    let events = await all(ring.reader(EventFilter(kinds: [.audit]), last: nil, follows: false))
    #expect(events.map(\.kind) == [.lost, .audit, .lost])
    #expect(events.map(\.lost) == [5, 5, 7])
    #expect(events.map(\.count) == [5, 0, 2])
    #expect(ring.counts.lost == 7)
  }

  @Test("a follower waits, is woken by the next event, and ends when it is closed", .timeLimit(.minutes(1)))
  func following() async {
    let ring = EventRing(capacity: 10)
    ring.append([Self.event(0), Self.event(1)])
    let reader = ring.reader(last: 1, follows: true)
    #expect(await reader.next()?.map(\.length) == [1])
    let task = Task { await reader.next()?.map(\.length) }
    ring.append([Self.event(2)])
    #expect(await task.value == [2])
    let waiting = Task { await reader.next() }
    reader.close()
    #expect(await waiting.value == nil)
    #expect(await reader.next() == nil)
  }

  @Test("closing the ring, or cancelling the task, ends whoever waits", .timeLimit(.minutes(1)))
  func ending() async {
    let ring = EventRing(capacity: 10)
    let cancelled = ring.reader(last: nil, follows: true)
    let task = Task { await cancelled.next() }
    task.cancel()
    #expect(await task.value == nil)
    let readers = (0..<20).map { _ in ring.reader(last: nil, follows: true) }
    await withTaskGroup(of: Bool.self) { group in
      for reader in readers { group.addTask { await reader.next() == nil } }
      group.addTask {
        ring.close()
        return true
      }
      for await ended in group { #expect(ended) }
    }
    #expect(await ring.reader(last: nil, follows: true).next() == nil)
  }

  @Test("many readers and writers at once: each reader gets or misses every event", .timeLimit(.minutes(1)))
  func concurrent() async {
    let ring = EventRing(capacity: 64)
    let total = 20_000
    let readers = (0..<4).map { _ in ring.reader(last: nil, follows: true) }
    await withTaskGroup(of: Int?.self) { group in
      for reader in readers {
        group.addTask {
          var seen = 0
          var last = -1
          while let events = await reader.next() {
            for event in events {
              if event.kind == .lost {
                seen += Int(event.count)
              } else {
                #expect(event.length > last)
                last = event.length
                seen += 1
              }
            }
            if last == total - 1 { break }
          }
          return seen
        }
      }
      group.addTask {
        for number in 0..<total {
          ring.append([Self.event(number)])
          if number % 100 == 0 { await Task.yield() }
        }
        return nil
      }
      for await seen in group { if let seen { #expect(seen == total) } }
    }
  }

  @Test("filters by kind, reason, ends, namespace and time")
  func filters() throws {
    var drop = Self.event(0)
    drop.source = try Self.side("10.0.0.1", "cart")
    drop.destination = try Self.side("10.0.0.2", "db")
    var audit = Self.event(1, .audit)
    audit.source = try Self.side("192.0.2.1")
    audit.destination = try Self.side("10.0.0.2", "db")
    func passes(_ body: (inout EventFilter) -> Void) -> [Bool] {
      var filter = EventFilter()
      body(&filter)
      return [drop, audit].map(filter.passes)
    }
    #expect(passes { _ in } == [true, true])
    #expect(passes { $0.kinds = [.drop] } == [true, false])
    #expect(passes { $0.reasons = ["forged-source"] } == [false, false])
    #expect(passes { $0.reasons = ["forged-source", "policy-denied"] } == [true, true])
    #expect(passes { $0.source = .init("shop/cart") } == [true, false])
    #expect(passes { $0.source = .init("192.0.2.1") } == [false, true])
    #expect(passes { $0.destination = .init("shop/db") } == [true, true])
    #expect(passes { $0.destination = .init("shop/cart") } == [false, false])
    #expect(passes { $0.either = .init("shop/cart") } == [true, false])
    #expect(passes { $0.namespace = "shop" } == [true, true])
    #expect(passes { $0.namespace = "test" } == [false, false])
    #expect(passes { $0.since = .init(seconds: 1001, microseconds: 0) } == [false, true])
    #expect(passes { $0.since = .init(seconds: 1001, microseconds: 1) } == [false, false])
    #expect(EventFilter.End("shop") == nil)
    #expect(EventFilter.End("shop/") == nil)
    #expect(EventFilter.End("a/b/c") == nil)
  }

  @Test("of each second's events only so many are named")
  func budget() {
    var budget = Budget(perSecond: 10)
    let start = ContinuousClock.now + .seconds(100)
    #expect(budget.take(4, now: start) == 4)
    #expect(budget.take(8, now: start) == 6)
    #expect(budget.take(1, now: start) == 0)
    #expect(budget.take(100, now: start + .seconds(1)) == 10)
  }
}
