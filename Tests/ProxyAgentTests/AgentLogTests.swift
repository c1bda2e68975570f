import LocalAPI
import Logging
import Synchronization
import Testing

@testable import ProxyAgent

@Suite("The agent's log")
struct AgentLogTests {
  private final class Lines: Sendable {
    private let held = Mutex<[String]>([])
    func append(_ line: String) { held.withLock { $0.append(line) } }
    var all: [String] { held.withLock { $0 } }
  }

  @Test("as JSON a line is one object; all loggers follow a level that changes, unless they ask for more")
  func json() throws {
    let before = AgentLog.level
    defer { AgentLog.level = before }
    let lines = Lines()
    let logger = Logger(label: "sluice-agent") { AgentLog(label: $0, format: .json) { lines.append($0) } }
    var quiet = logger
    quiet.logLevel = .warning
    AgentLog.level = .info
    logger.debug("not told")
    AgentLog.level = .debug
    logger.debug("a \"word\"\nand more", metadata: ["object": "shop/web", "level": "of its own"])
    quiet.info("not told either")
    quiet.error("told")
    #expect(lines.all.count == 2)
    let line = try #require(lines.all.first)
    #expect(line.hasSuffix("\n") && line.dropLast().allSatisfy { $0 != "\n" })
    let object = try JSONValue(parsing: line)
    #expect(object["message"]?.stringValue == "a \"word\"\nand more")
    #expect(object["level"]?.stringValue == "debug" && object["level_"]?.stringValue == "of its own")
    #expect(object["object"]?.stringValue == "shop/web" && object["logger"]?.stringValue == "sluice-agent")
    #expect(try #require(object["time"]?.stringValue).wholeMatch(of: /\d{4}-\d\d-\d\dT[\d:.]+Z/) != nil)
  }
}
