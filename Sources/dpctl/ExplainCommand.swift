import ArgumentParser
import LocalAPI

/// What would become of a flow, and which rule says so.
struct ExplainCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "explain",
    abstract: "What becomes of a flow: Service translation, policies, the deciding rule.",
    usage: "dpctl explain [<options>] <source> <destination>[:<port>][/<protocol>]",
    discussion: """
      The agent judges by the tables it programmed and asks the kernel the same; nothing is evaluated anew.

      Examples:
        dpctl explain shop/cart-7d9 shop/db-0:5432/tcp
        dpctl explain shop/cart-7d9 svc/shop/api:80
        dpctl explain world [fd00::1]:53/udp
        dpctl explain host shop/db-0/icmp

      Exit status: 0 allowed; 1 denied, rejected, dropped, denied for some backends, or the kernel disagrees; 2 usage or \
      an unknown name; 3 the agent has no answer.
      """)

  enum Family: String, CaseIterable, ExpressibleByArgument {
    case v4 = "IPv4"
    case v6 = "IPv6"
  }

  @OptionGroup var options: GlobalOptions
  @Option(name: .shortAndLong, help: "The namespace of names that have none.") var namespace = "default"
  @Option(help: "IPv4 or IPv6, where both ends have both.") var family: Family?
  @Argument(help: "NAMESPACE/POD, an address, world, or host: this node's own processes.") var source: String
  @Argument(help: "NAMESPACE/POD, svc/NAMESPACE/SERVICE, an address or world, with port and protocol (default: tcp).")
  var destination: String

  func validate() throws {
    if options.output == .name { throw ValidationError("-o name: there is nothing to name") }
    _ = try flow()
  }

  func run() throws {
    let answer = try options.answer("/v1/explain", try flow() + [("family", family?.rawValue)])
    let text = ExplainText(answer)
    switch options.output {
    case .json: print(answer.serialized(pretty: true))
    case .jsonl: print(answer.serialized())
    case .yaml: print(Output.yaml(answer, indent: 0))
    default: print(text.text(options.terminal, wide: options.output == .wide))
    }
    if text.disagreements > 0 {
      let count = text.disagreements == 1 ? "1 look-up differs" : "\(text.disagreements) look-ups differ"
      Dpctl.complain("dpctl: the kernel does not do what the agent believes (\(count)): see `dpctl policy diff`")
    }
    guard text.isAllowed else { throw ExitCode(1) }
  }

  private func flow() throws -> [(key: String, value: String?)] {
    do {
      return try ExplainTarget.flow(from: source, to: destination, defaultNamespace: namespace)
    } catch {
      throw ValidationError(error.description)
    }
  }
}
