import ClusterSource
import Testing

@testable import ProxyAgent

@Suite("Events on the Node") struct NodeConditionEventsTests {
  /// Looks once a second, as the agent does.
  private func events(_ conditions: [AgentCondition]) -> [String] {
    var rules = ConditionEvents(engine: "nftables")
    let start = ContinuousClock.now
    return conditions.enumerated().flatMap { second, condition in
      rules.next(condition, at: start + .seconds(second)).map { "\(second) \($0.reason)" }
    }
  }

  @Test("tell once that the agent serves")
  func started() {
    var rules = ConditionEvents(engine: "ebpf")
    #expect(rules.next(AgentCondition(), at: .now) == [])
    let events = rules.next(AgentCondition(isSynced: true), at: .now)
    #expect(events.map(\.reason) == ["SluiceStarted"] && !events[0].isWarning && events[0].message.contains("ebpf"))
    #expect(rules.next(AgentCondition(isSynced: true), at: .now) == [])
  }

  @Test("tell of a failure that lasts, once, and of its end; of one that passes, nothing")
  func failure() {
    func condition(_ isFailing: Bool) -> AgentCondition {
      AgentCondition(isSynced: true, failure: isFailing ? "ENOSPC" : nil)
    }
    let short = Array(repeating: condition(true), count: 9) + [condition(false)]
    #expect(events(short + short) == ["0 SluiceStarted"])
    let long = Array(repeating: condition(true), count: 30) + Array(repeating: condition(false), count: 3)
    #expect(events(long) == ["0 SluiceStarted", "10 SluiceNotProgrammed", "30 SluiceProgrammed"])
  }

  @Test("tell of repairs, and in ten minutes' time of all that came after")
  func repairs() {
    let conditions = (0..<1300).map { AgentCondition(isSynced: true, repairs: $0 < 5 ? 0 : $0) }
    #expect(events(conditions) == ["0 SluiceStarted", "5 SluiceRepaired", "605 SluiceRepaired", "1205 SluiceRepaired"])
    #expect(events(Array(repeating: AgentCondition(repairs: 1), count: 1300)) == ["0 SluiceRepaired"])
  }
}
