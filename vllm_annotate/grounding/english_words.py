"""The words by which relations are found in English texts."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


DETERMINERS = _set(
    """
    the a an this that its his her their
    """
)
UNCERTAIN = _set(
    """
    if unless would could might may should perhaps maybe possibly probably likely imagine suppose supposedly not no
    never neither nor none or either instead rather cannot isn't aren't wasn't doesn't don't can't without seem
    seems seemingly apparently mirror mirrored reflection reflected perspective viewpoint caption says claims
    described supposed expected unclear whether unlike until once before after originally formerly facing than
    except although
    """
)
FUNCTION_WORDS = DETERMINERS | _set(
    """
    of in on at to by with from and but as for near beside behind between over into onto around along across against
    through toward towards while whereas where when which who whose that is are was were be been it they he she
    there has have had this these those both each every all any some several many most few two three four other
    another first second third next
    """
)
ADVERBS = _set(
    """
    directly just slightly immediately clearly right far well somewhat mostly mainly also still partly centrally
    neatly prominently closely diagonally vertically horizontally together alone side upright
    """
)
VERBS = _set(
    """
    is are was were be can seen visible shown found located placed positioned situated standing sitting lying
    resting hanging parked set mounted stands stand sits sit lies lie rests rest hangs hang appears appear occupies
    floats float hovers hover flies fly flying floating towers rises perched seated leaning leans kept laid stacked
    arranged displayed depicted lays stays
    """
)
FINITE = _set(
    """
    is are was were stands stand sits sit lies lie rests rest hangs hang appears appear floats hovers flies
    """
)
ACTIONS = _set(
    """
    plays playing sleeps sleeping waits waiting grows growing swims swimming
    """
)
GLUE = ADVERBS | VERBS | ACTIONS
RELATIVE = frozenset(["which", "that", "who"])
OPENERS = frozenset([",", ":", "—", "–", "while", "whereas", "where", "shows", "depicts", "features", "see", "(", '"'])
SEEN = _set("wears wearing holds holding carries looks watches reads shows")  # may follow a noun
FOLLOWING = FUNCTION_WORDS | GLUE | SEEN | frozenset([",", ":", "—", "–", "(", ")", '"'])
THERE_IS = (["there", "is"], ["there", "are"])
PREPOSITIONS = _set(
    """
    on in with near beside by at behind holding wearing
    """
)
IMAGE_PARTS = _set(
    """
    side part half corner portion third area edge section quarter quadrant region
    """
)
IMAGES = _set(
    """
    image picture photo photograph frame scene composition canvas
    """
)
SINGLE = {"above": "above", "below": "below", "beneath": "below", "underneath": "below", "under": "below"}
HEADS = frozenset(["left", "right", "top", "bottom", "inside", "contains", "containing", *SINGLE])
UPPER = {"upper": "above", "top": "above", "lower": "below", "bottom": "below"}
SLANTS = frozenset([*UPPER, "far", "immediate", "direct", "very"])
AMBIGUOUS = _set(
    """
    other another second first third one two three several many
    """
)
